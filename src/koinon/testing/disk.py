"""Disks that are full at times, and processes that are killed beside, before or after a write."""

import contextlib
import errno
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from koinon.core.errors import Unavailable
from koinon.core.types import ClientId
from koinon.durable.journal import Journal
from koinon.durable.spool import Spool
from koinon.durable.store import Store
from koinon.protocol.messages import Blob
from koinon.update.codec import Codec, Shared


class Killed(BaseException):
    """The process ends here; no handler of the program's own may stop it."""


class Disk:
    """What may go wrong where one process writes.

    Attributes:
        deadly: Chance, at each opportunity, that the process is killed.
        full: Whether nothing can be written.
        writes: How often something was written.
    """

    def __init__(self, rng: random.Random, faults: Counter[str]) -> None:
        self.deadly = 0.0
        self.full = False
        self.writes = 0
        self._rng = rng
        self._faults = faults

    def opportunity(self, where: str) -> None:
        """Be killed, perhaps."""
        if self.deadly and self._rng.random() < self.deadly:
            self._faults[f"killed {where}"] += 1
            raise Killed

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write in the block: killed before it, or after it, or refused by a full disk."""
        self.opportunity("before a write")
        if self.full:
            self._faults["write refused"] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self.writes += 1
        yield
        self.opportunity("after a write")

    def append(self, path: Path, data: bytes) -> None:
        """Append as much as fits."""
        if self.full:
            with path.open("ab") as file:
                file.write(data[: self._rng.randrange(len(data))])
        with self.writing(), path.open("ab") as file:
            file.write(data)


class FaultyStore(Store):
    """A store on such a disk."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.disk = disk
        super().__init__(folder)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self.disk.writing(), super()._transaction():
                yield
        except OSError as error:
            raise Unavailable(f"cannot write to the run's store: {error}") from error

    def checkpoint(self, round: int) -> Path:
        """Where a checkpoint is; asked for before each is read or written."""
        with self.disk.writing():
            return super().checkpoint(round)


class FaultySpool(Spool):
    """A spool on such a disk."""

    def __init__(
        self, folder: Path, codec: Codec | None, shared: Callable[[int], Shared], most_bytes: int, disk: Disk
    ) -> None:
        super().__init__(folder, codec, shared, most_bytes)
        self.disk = disk

    def _append(self, path: Path, data: bytes) -> None:
        self.disk.append(path, data)

    def seal(self, round: int, node: ClientId, blob: Blob) -> str | None:
        """Make an update durable."""
        with self.disk.writing():
            return super().seal(round, node, blob)


class FaultyJournal(Journal):
    """A journal on such a disk."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.disk = disk
        super().__init__(folder)

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        with super()._on_disk(), self.disk.writing():
            yield

    def _append(self, path: Path, data: bytes) -> None:
        self.disk.append(path, data)

    def keep_masked(self, data: bytes) -> Blob:
        """Write a masked update."""
        with self.disk.writing():
            return super().keep_masked(data)

    def keep(self, round: int, encoded: bytes | memoryview, state: Mapping[str, torch.Tensor]) -> Blob:
        """Write an update."""
        with self.disk.writing():
            return super().keep(round, encoded, state)
