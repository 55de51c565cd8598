"""Bytes that cross a node's connection, as they are counted and as they can be told beforehand.

A message on its way is its own bytes, the signed envelope and the header of one WebSocket frame; a blob is as many messages
as it has pieces. A simulation counts what it would have sent by these functions, and a network what it did send.
"""

from dataclasses import dataclass
from functools import cache

from koinon.durable.checkpoint import READ_BYTES
from koinon.protocol.messages import Blob, Chunk, Message
from koinon.wire.channel import ENVELOPE_BYTES
from koinon.wire.codec import encode
from koinon.wire.connection import framed


@dataclass
class Traffic:
    """Bytes from a node and to it."""

    up: int = 0
    down: int = 0


def message_bytes(message: Message, *, node: bool) -> int:
    """Bytes of a message.

    Args:
        message: What is said.
        node: Whether a node says it: what nodes send is masked, which takes four bytes.
    """
    return framed(ENVELOPE_BYTES + len(encode(message)), masked=node)


def blob_bytes(blob: Blob, offset: int, *, node: bool) -> int:
    """Bytes of the pieces of a blob from `offset` on."""
    return sum(
        _piece(at.bit_length(), min(READ_BYTES, blob.size - at), node=node)
        for at in range(offset, blob.size, READ_BYTES)
    )


@cache
def _piece(bits: int, size: int, *, node: bool) -> int:
    """Bytes of a piece of `size`, whose offset has so many bits: MessagePack writes small numbers shorter."""
    piece = Chunk("0" * 64, (1 << bits) >> 1, bytes(size))
    return message_bytes(piece, node=node)
