"""Bytes <-> messages: MessagePack, checked against the message's type while it is read, bounded before it is read.

A decoder is made for a union of messages and knows no other, so a node cannot send what only a server may say.
msgspec allocates for what it has read, never for what a header announces; the tests hold it to that.
"""

from functools import cache
from typing import Any, TypeAlias

import msgspec

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.protocol.messages import MAX_MESSAGE_BYTES, Message

Data: TypeAlias = bytes | bytearray | memoryview
"""Bytes from a peer."""

_ENCODER = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """The message's bytes; equal messages have equal bytes."""
    return _ENCODER.encode(message)


def encode_behind(message: Message, head: int) -> bytearray:
    """The message's bytes behind `head` bytes that the caller fills, in one buffer, so that nothing is copied twice.

    Raises:
        AdmissionError: if the whole is larger than any peer accepts.
    """
    frame = bytearray(head)
    _ENCODER.encode_into(message, frame, head)
    if len(frame) > MAX_MESSAGE_BYTES:
        raise AdmissionError(
            f"{type(message).__name__} takes {len(frame)} bytes, but a message has at most {MAX_MESSAGE_BYTES}; "
            "report fewer metrics or fewer bins"
        )
    return frame


def decode(data: Data, among: object, limit: int = MAX_MESSAGE_BYTES) -> Message:
    """The message in `data`, which must be one of `among` and nothing besides.

    Args:
        data: Bytes from the peer.
        among: A message type, or a union of them, such as `FromNode`.
        limit: Largest accepted size in bytes.

    Raises:
        ProtocolViolation: for anything else.
    """
    size = memoryview(data).nbytes
    if size > limit:
        raise ProtocolViolation(f"the peer sent a message of {size} bytes; at most {limit} are allowed")
    try:
        message: Message = _decoder(among).decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"the peer sent a malformed message: {one_line(str(error))}") from None
    return message


def one_line(text: str) -> str:
    """What a peer may have written, made safe to show: one line, printable, at most 200 characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:200])


@cache
def _decoder(among: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(among)
