"""An established conversation over a WebSocket: messages in order, bounded memory, counted bytes."""

import asyncio
from typing import Protocol

from koinon.core.errors import KoinonError, ProtocolViolation, Unavailable
from koinon.protocol.messages import Message
from koinon.wire.channel import Channel
from koinon.wire.codec import one_line

PATH = "/federation"
"""Where nodes connect."""

HANDSHAKE_S = 10.0
"""Seconds within which a new connection must have proved who it is."""

NORMAL, GOING_AWAY, VIOLATION = 1000, 1001, 1008
_FAULTS = frozenset({1002, 1003, 1007, VIOLATION, 1009})  # RFC 6455, §7.4.1: codes that blame somebody


class Socket(Protocol):
    """A WebSocket of either library: whole binary messages. Not for two readers at once."""

    async def send(self, data: bytes | bytearray) -> None:
        """Send, waiting while about a chunk is still unsent; Unavailable when cut."""

    async def receive(self) -> bytes:
        """The next message; `ended(…)` is raised when there is none."""

    async def close(self, code: int, reason: str) -> None:
        """Close, telling the peer why; no error if it is closed already."""


class Pipe:
    """A socket and the bytes that went through it.

    Counted are the payloads of WebSocket messages and the header of one frame for each, handshake included: what
    follows from the messages alone and is the same at both ends. Not counted: HTTP's upgrade, control frames, TLS, TCP.

    Attributes:
        bytes_in: Bytes received.
        bytes_out: Bytes sent.
    """

    def __init__(self, socket: Socket, *, node: bool) -> None:
        self._socket = socket
        self._node = node
        self.bytes_in = 0
        self.bytes_out = 0

    async def send(self, data: bytes | bytearray) -> None:
        """Send one message."""
        await self._socket.send(data)
        self.bytes_out += framed(len(data), masked=self._node)

    async def receive(self) -> bytes:
        """Receive one message."""
        data = await self._socket.receive()
        self.bytes_in += framed(len(data), masked=not self._node)
        return data

    async def close(self, code: int, reason: str) -> None:
        """Close, telling the peer why."""
        await self._socket.close(code, _fit(reason))


class Connection:
    """A conversation with a peer that has proved who it is.

    Any number of tasks may send; one may receive.

    Attributes:
        peer: The peer's public key.
    """

    def __init__(self, pipe: Pipe, channel: Channel) -> None:
        self.peer = channel.peer
        self._pipe = pipe
        self._channel = channel
        self._turn = asyncio.Lock()
        self._closed = False

    @property
    def bytes_in(self) -> int:
        """Bytes received, as `Pipe` counts them."""
        return self._pipe.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes sent, as `Pipe` counts them."""
        return self._pipe.bytes_out

    async def send(self, message: Message) -> None:
        """Send a message, waiting while about one chunk is still unsent.

        A send that is cancelled ends the connection: whether its frame left is unknown, and the next would be refused.

        Raises:
            Unavailable: if the connection is cut or closed.
            AdmissionError: if the message is larger than any peer accepts.
        """
        async with self._turn:
            if self._closed:
                raise Unavailable("the connection is closed")
            frame = self._channel.seal(message)
            try:
                await self._pipe.send(frame)
            except BaseException:
                self._closed = True
                raise

    async def receive(self) -> Message:
        """The peer's next message.

        Raises:
            Unavailable: if the connection is cut or closed.
            ProtocolViolation: if the peer breaks the rules; the connection is closed by then.
        """
        try:
            return self._channel.open(await self._pipe.receive())
        except ProtocolViolation as error:
            await self.close(str(error), VIOLATION)
            raise

    async def close(self, reason: str = "", code: int = NORMAL) -> None:
        """Close, telling the peer why; a second time does nothing."""
        self._closed = True
        await self._pipe.close(code, reason)


def framed(payload: int, *, masked: bool) -> int:
    """Bytes of a WebSocket frame; RFC 6455, §5.2."""
    length = 0 if payload < 126 else 2 if payload < 1 << 16 else 8
    return 2 + length + (4 if masked else 0) + payload


def ended(code: int | None, reason: str | None) -> KoinonError:
    """What the end of a WebSocket means to the side that reads it.

    Args:
        code: RFC 6455's code, from whichever side closed; None when it was cut.
        reason: The peer's words, if any.
    """
    words = f": {one_line(reason)}" if reason else ""
    if code in _FAULTS:
        return ProtocolViolation(f"the connection was refused with code {code}{words}")
    return Unavailable(f"the connection was closed{words}" if code == NORMAL else f"the connection was cut{words}")


def _fit(reason: str) -> str:
    """As much of a reason as a close frame holds: 123 bytes."""
    return one_line(reason).encode()[:123].decode(errors="ignore")
