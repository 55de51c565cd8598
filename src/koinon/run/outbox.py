"""What waits to be sent over one connection: messages, and blobs that are read only as fast as they leave."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from koinon.core.errors import Unavailable
from koinon.durable.checkpoint import read_span
from koinon.durable.failpoint import reach
from koinon.protocol.messages import Chunk, Goodbye, Message, Summing
from koinon.wire.connection import Connection

FAREWELL_S = 2.0
"""Seconds that a peer has to read what is left for it once it has been sent away."""


@dataclass(frozen=True)
class FileChunks:
    """A blob in a file.

    Attributes:
        digest: The blob's digest.
        path: The file.
        begin: Where in the file the blob begins.
        size: The blob's size.
        offset: From where in the blob to send.
        moment: What tests call the moment after a piece has left.
    """

    digest: str
    path: Path
    begin: int
    size: int
    offset: int
    moment: str

    def __iter__(self) -> Iterator[Chunk]:
        """The blob's pieces; none when its file is gone, because what it was for is over."""
        offset = self.offset
        with contextlib.suppress(FileNotFoundError):
            for piece in read_span(self.path, self.begin + offset, self.begin + self.size):
                yield Chunk(self.digest, offset, piece)
                offset += len(piece)
                reach(self.moment)


Item: TypeAlias = Message | FileChunks


class Outbox:
    """Sends what is put into it, in order, until it is closed; what many wait for overtakes blobs.

    Args:
        connection: Where to.
        sent: Called whenever something was sent.
    """

    def __init__(self, connection: Connection, sent: Callable[[], None] = lambda: None) -> None:
        self._connection = connection
        self._sent = sent
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._urgent: deque[Summing] = deque()
        self._until: float | None = None
        self._patience: asyncio.Timeout | None = None

    def put(self, item: Item) -> None:
        """Send this after what was put before; a message of a secure sum, between two pieces of a blob."""
        if isinstance(item, Summing):
            self._urgent.append(item)
        self._items.put_nowait(item)
        if isinstance(item, Goodbye) and self._until is None:
            self._until = asyncio.get_running_loop().time() + FAREWELL_S
            if self._patience is not None:
                self._patience.reschedule(self._until)

    async def run(self) -> None:
        """Send, until a Goodbye was sent.

        Raises:
            Unavailable: if the connection is cut, or the peer does not read on until its Goodbye.
        """
        try:
            async with asyncio.timeout_at(self._until) as self._patience:
                await self._send()
        except TimeoutError:
            raise Unavailable("the peer does not read what it is sent") from None
        finally:
            self._patience = None

    async def _send(self) -> None:
        while True:
            item = await self._items.get()
            if isinstance(item, Summing):
                await self._send_urgent()
            elif isinstance(item, FileChunks):
                await self._send_all(item)
            else:
                await self._connection.send(item)
                self._sent()
            if isinstance(item, Goodbye):
                await self._connection.close(item.reason)
                return

    async def _send_all(self, chunks: FileChunks) -> None:
        """In a function of its own, since a loop's last chunk would be held until the next item."""
        for chunk in chunks:
            await self._connection.send(chunk)
            self._sent()
            await self._send_urgent()

    async def _send_urgent(self) -> None:
        while self._urgent:
            await self._connection.send(self._urgent.popleft())
            self._sent()
