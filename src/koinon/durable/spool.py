"""Where arriving updates are written, chunk by chunk, until their round closes.

One file for each node and round. Bytes are appended in order, so the length of a file is what was received and
a cut connection or a killed server loses at most the piece in flight. An update is complete when it has its
size; it is believed when its digest is right, its values are finite, and the file is on disk.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from koinon.core.errors import ProtocolViolation, Unavailable
from koinon.core.types import ClientId, finite
from koinon.durable.checkpoint import read_span, sync_folder
from koinon.protocol.messages import Blob, Chunk
from koinon.update.codec import Codec, OnDisk, Shared

FINITE_BLOCK = 1 << 15
"""Elements checked for NaN and Inf at a time."""


@dataclass
class Arriving:
    """An update on its way.

    Attributes:
        received: How many of its bytes are written.
        over: Whether its round has closed, so that the bytes that are still on their way mean nothing.
    """

    round: int
    blob: Blob
    path: Path
    received: int
    over: bool = False


class Spool:
    """The spool of one run.

    Args:
        folder: Where the files are.
        codec: Decodes an update to check its values; None: they are masked, and only the sum says whether they are sound.
        shared: Round number -> what all know of the round's updates.
        most_bytes: Largest update that is ever written.
    """

    def __init__(self, folder: Path, codec: Codec | None, shared: Callable[[int], Shared], most_bytes: int) -> None:
        self._folder = folder
        self._codec = codec
        self._shared = shared
        self._most_bytes = most_bytes
        self._arriving: dict[ClientId, Arriving] = {}

    def path(self, round: int, node: ClientId, digest: str) -> Path:
        """Where a node's update for a round is."""
        return self._folder / f"round-{round:06d}" / f"{node}.{digest}"

    def expect(self, round: int, node: ClientId, blob: Blob) -> int:
        """Make room for an update; returns how many of its bytes are there already.

        Raises:
            ProtocolViolation: if it is larger than any update can be.
            Unavailable: if the disk is full or broken.
        """
        if blob.size > self._most_bytes:
            raise ProtocolViolation(f"{node} offers {blob.size} bytes; an update has at most {self._most_bytes}")
        path = self.path(round, node, blob.digest)
        with _on_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            received = path.stat().st_size
            if received > blob.size:
                os.truncate(path, 0)
                received = 0
        if received < blob.size:
            self._arriving[node] = Arriving(round, blob, path, received)
        else:
            self._arriving.pop(node, None)
        return received

    def expects(self, node: ClientId, blob: Blob) -> bool:
        """Whether this update is on its way already."""
        arriving = self._arriving.get(node)
        return arriving is not None and arriving.blob == blob and not arriving.over

    def write(self, node: ClientId, chunk: Chunk) -> Arriving | None:
        """Append a chunk; returns the update when it is complete now. What comes after its round closed is dropped.

        Raises:
            ProtocolViolation: if it was not expected, or is not the next one.
            Unavailable: if the disk is full or broken; `forget` it, and `expect` it anew.
        """
        arriving = self._arriving.get(node)
        if arriving is None or arriving.blob.digest != chunk.digest:
            raise ProtocolViolation(f"{node} sends a chunk of an update that was not expected")
        if arriving.over:
            return None
        if chunk.offset != arriving.received:
            raise ProtocolViolation(f"{node} sends bytes from {chunk.offset}, {arriving.received} would be next")
        if arriving.received + len(chunk.data) > arriving.blob.size or not chunk.data:
            raise ProtocolViolation(f"{node} sends more bytes than it offered, or none")
        with _on_disk(arriving.path):
            self._append(arriving.path, chunk.data)
        arriving.received += len(chunk.data)
        if arriving.received < arriving.blob.size:
            return None
        return self._arriving.pop(node)

    def seal(self, round: int, node: ClientId, blob: Blob) -> str | None:
        """Check a complete update and make it durable; returns what is wrong with it, or None."""
        path = self.path(round, node, blob.digest)
        try:
            fault = self._fault(path, blob, self._shared(round))
            if fault is not None:
                path.unlink()
                return fault
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sync_folder(path.parent)
        except FileNotFoundError:
            return f"round {round} has closed without it"
        return None

    def forget(self, node: ClientId) -> None:
        """The node is gone; its bytes stay for when it comes back."""
        self._arriving.pop(node, None)

    def end(self, through: int) -> None:
        """Rounds up to `through` have closed: what still arrives for them means nothing."""
        for arriving in self._arriving.values():
            arriving.over |= arriving.round <= through

    def drop(self, through: int) -> None:
        """Delete the files of all rounds up to `through`, which have ended; on any thread. What is left goes next time."""
        for folder in self._folder.glob("round-*"):
            if int(folder.name.partition("-")[2]) <= through:
                shutil.rmtree(folder, ignore_errors=True)

    def _append(self, path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    def _fault(self, path: Path, blob: Blob, shared: Shared) -> str | None:
        hasher = hashlib.sha256()
        for piece in read_span(path, 0, blob.size):
            hasher.update(piece)
        if hasher.hexdigest() != blob.digest:
            return "the update's bytes do not have the offered digest"
        if self._codec is None:
            return None
        encoded = OnDisk(path)
        try:
            for start in range(0, shared.length, FINITE_BLOCK):
                stop = min(start + FINITE_BLOCK, shared.length)
                block = self._codec.decode(encoded, shared, start, stop)
                if not finite(block):
                    return "the update holds NaN or infinite values"
        except ValueError as error:
            return f"the update cannot be decoded: {error}"
        return None


@contextlib.contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error
