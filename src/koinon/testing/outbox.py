"""What waits to be sent over one simulated connection: messages in order, blobs piece by piece."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from koinon.durable.checkpoint import read_span
from koinon.protocol.messages import Chunk, Message
from koinon.testing.process import Process

CHUNK = 12
"""Bytes of a blob in one message: a model takes three."""

LONGEST_S = 0.3
"""Longest time that one piece of a blob takes."""


class Outbox:
    """Sends what is put into it, in order, until it is closed.

    Args:
        process: Whose it is; it dies with the process.
        send: Puts a message on the link.
    """

    def __init__(self, process: Process, send: Callable[[Message], None]) -> None:
        self._process = process
        self._send = send
        self._items: deque[Iterator[Message]] = deque()
        self._busy = False
        self._closed = False

    def put(self, messages: Iterable[Message]) -> None:
        """Send these after what was put before."""
        self._items.append(iter(messages))
        if not self._busy:
            self._go_on()

    def close(self) -> None:
        """Send no more."""
        self._closed = True

    def _go_on(self) -> None:
        """Send until a piece of a blob was sent; then later."""
        self._busy = True
        while not self._closed and self._items:
            message = None
            with suppress(FileNotFoundError):  # the blob is wanted no more and was deleted meanwhile
                message = next(self._items[0], None)
            if message is None:
                self._items.popleft()
                continue
            self._send(message)
            if isinstance(message, Chunk):
                self._process.after(self._process.duration(LONGEST_S), self._go_on)
                return
        self._busy = False


def chunks(digest: str, path: Path, begin: int, size: int, offset: int) -> Iterator[Message]:
    """A blob's bytes from `offset` on, in pieces; it begins in its file at `begin`."""
    for start in range(offset, size, CHUNK):
        stop = min(start + CHUNK, size)
        yield Chunk(digest, start, b"".join(read_span(path, begin + start, begin + stop)))
