"""Where arriving updates are written, chunk by chunk, until their round closes.

One file for each node and round. Bytes are appended in order, so the length of a file is what was received and
a cut connection or a killed server loses at most the piece in flight. An update is complete when it has its
size; it is believed when its digest is right, its values are finite, and the file is on disk.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from koinon.core.errors import ProtocolViolation
from koinon.core.types import ClientId
from koinon.protocol.messages import Blob, Chunk
from koinon.run.checkpoint import read_span, sync_folder
from koinon.update.codec import Codec, OnDisk

FINITE_BLOCK = 1 << 20
"""Elements checked for NaN and Inf at a time."""


@dataclass
class _Arriving:
    path: Path
    blob: Blob
    received: int


class Spool:
    """The spool of one run.

    Args:
        folder: Where the files are.
        codec: Decodes an update to check its values.
        length: D, elements of a decoded update.
        most_bytes: Largest update that is ever written.
    """

    def __init__(self, folder: Path, codec: Codec, length: int, most_bytes: int) -> None:
        self._folder = folder
        self._codec = codec
        self._length = length
        self._most_bytes = most_bytes
        self._arriving: dict[ClientId, _Arriving] = {}

    def path(self, round: int, node: ClientId, digest: str) -> Path:
        """Where a node's update for a round is."""
        return self._folder / f"round-{round:06d}" / f"{node}.{digest}"

    def expect(self, round: int, node: ClientId, blob: Blob) -> int:
        """Make room for an update; returns how many of its bytes are there already.

        Raises:
            ProtocolViolation: if it is larger than any update can be.
        """
        if blob.size > self._most_bytes:
            raise ProtocolViolation(f"{node} offers {blob.size} bytes; an update has at most {self._most_bytes}")
        path = self.path(round, node, blob.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        received = path.stat().st_size
        if received > blob.size:
            os.truncate(path, 0)
            received = 0
        self._arriving[node] = _Arriving(path, blob, received)
        return received

    def write(self, node: ClientId, chunk: Chunk) -> bool:
        """Append a chunk; returns whether the update is complete now.

        Raises:
            ProtocolViolation: if it was not expected, or is not the next one.
        """
        arriving = self._arriving.get(node)
        if arriving is None or arriving.blob.digest != chunk.digest:
            raise ProtocolViolation(f"{node} sends a chunk of an update that was not expected")
        if chunk.offset != arriving.received:
            raise ProtocolViolation(f"{node} sends bytes from {chunk.offset}, {arriving.received} would be next")
        if arriving.received + len(chunk.data) > arriving.blob.size or not chunk.data:
            raise ProtocolViolation(f"{node} sends more bytes than it offered, or none")
        with arriving.path.open("ab", buffering=0) as file:
            file.write(chunk.data)
        arriving.received += len(chunk.data)
        return arriving.received == arriving.blob.size

    def complete(self, node: ClientId) -> bool:
        """Whether all bytes of the expected update are there."""
        arriving = self._arriving.get(node)
        return arriving is not None and arriving.received == arriving.blob.size

    def seal(self, node: ClientId) -> str | None:
        """Check a complete update and make it durable; returns what is wrong with it, or None."""
        arriving = self._arriving.pop(node)
        fault = self._fault(arriving)
        if fault is not None:
            arriving.path.unlink()
            return fault
        with arriving.path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(arriving.path.parent)
        return None

    def forget(self, node: ClientId) -> None:
        """The node is gone; its bytes stay for when it comes back."""
        self._arriving.pop(node, None)

    def drop(self, through: int) -> None:
        """Delete the files of all rounds up to `through`."""
        for folder in self._folder.glob("round-*"):
            if int(folder.name.partition("-")[2]) <= through:
                shutil.rmtree(folder)

    def _fault(self, arriving: _Arriving) -> str | None:
        hasher = hashlib.sha256()
        for piece in read_span(arriving.path, 0, arriving.blob.size):
            hasher.update(piece)
        if hasher.hexdigest() != arriving.blob.digest:
            return "the update's bytes do not have the offered digest"
        encoded = OnDisk(arriving.path)
        try:
            for start in range(0, self._length, FINITE_BLOCK):
                stop = min(start + FINITE_BLOCK, self._length)
                block = self._codec.decode(encoded, self._length, start, stop)
                if not torch.isfinite(block).all():
                    return "the update holds NaN or infinite values"
        except ValueError as error:
            return f"the update cannot be decoded: {error}"
        return None
