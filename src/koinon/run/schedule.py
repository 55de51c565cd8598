"""Which worker trains which chunk of a round, and what becomes of the chunks of those that die."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from koinon.federation import Federation
from koinon.run.chunks import Chunk, chunk_size, costliest

HELD_BYTES = 64 << 20
"""Results that may wait for their turn to be added up. The order of adding is canonical, that of training is not:
with room for a whole round the costliest clients begin first, and the workers end together."""

HELD_CHUNKS = 32
"""Chunks that may wait, however small; each needs a file descriptor where memory is shared."""

AHEAD = 2
"""Chunks that a worker is asked for at a time, so that it never waits for the process that asks."""

Worker = TypeVar("Worker", bound=Hashable)


def room(federation: Federation, workers: int) -> int:
    """Chunks that may be under way or wait for their turn with so many workers, whatever the cohort."""
    length = federation.learner.layout.length
    chunk = chunk_size(1 << 30, length) * federation.strategy.codec.most(federation.travelling)
    return AHEAD * workers + min(HELD_CHUNKS, HELD_BYTES // chunk)


class Schedule(Generic[Worker]):
    """A round's chunks on their way through workers; it asks nobody and waits for nothing.

    Args:
        chunks: In canonical order.
        workers: Who is there.
        room: Chunks that may be under way or wait for their turn, >= 1.
        attempts: Workers that may die of a chunk before it is given up.
    """

    def __init__(self, chunks: Sequence[Chunk], workers: Iterable[Worker], room: int, attempts: int) -> None:
        self.asked: dict[Worker, list[int]] = {worker: [] for worker in workers}
        self._chunks = chunks
        self._room = room
        self._attempts = attempts
        self._begun = 0
        self._deaths = [0] * len(chunks)
        self._waiting: list[int] = []  # begun, but nobody is asked for it

    def next(self) -> tuple[Worker, int] | None:
        """Who is to be asked for which chunk, the costliest first; None while nobody has time or there is no room."""
        while self._room and self._begun < len(self._chunks):
            self._waiting.append(self._begun)
            self._begun += 1
            self._room -= 1
        worker = min(self.asked, key=lambda each: len(self.asked[each]), default=None)
        if worker is None or not self._waiting or len(self.asked[worker]) >= AHEAD:
            return None
        place = costliest(self._chunks, self._waiting)
        self._waiting.remove(place)
        self.asked[worker].append(place)
        return worker, place

    def joined(self, worker: Worker) -> None:
        """One more worker is there."""
        self.asked[worker] = []

    def done(self, worker: Worker, place: int) -> None:
        """A worker has trained a chunk."""
        self.asked[worker].remove(place)

    def taken(self) -> None:
        """The result of a chunk was added up, and waits no more."""
        self._room += 1

    def again(self, worker: Worker, place: int) -> None:
        """A result was lost on its way, by no fault of the chunk."""
        self.done(worker, place)
        self._waiting.append(place)

    def lost(self, worker: Worker) -> tuple[Chunk | None, bool]:
        """A worker died: others do what it was asked for.

        Returns:
            What it died of, the first that it was asked for; and whether that is to be given up.
        """
        places = self.asked.pop(worker)
        self._waiting += places
        if not places:
            return None, False
        self._deaths[places[0]] += 1
        return self._chunks[places[0]], self._deaths[places[0]] >= self._attempts
