"""A few values of many."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from koinon.core.errors import AdmissionError
from koinon.core.rng import words
from koinon.core.types import Vector
from koinon.update.codec import Claims, Codec, Encoded, Float32, Made, Shared, flat
from koinon.update.partial import Partial, Read
from koinon.update.places import CHUNK, PlaceCode, Places
from koinon.update.sign import Sign

_SAMPLE = 1 << 14
"""Values that tell where the threshold of the largest may lie."""


@dataclass(frozen=True)
class TopK(Partial):
    """The largest values by magnitude, and their places; all others become 0. Biased: use it in `ErrorFeedback`.

    A place takes 2 + log2(1 / fraction) bits. Of equal magnitudes the first are taken.

    Source: Aji and Heafield, "Sparse communication for distributed gradient descent" (2017); Stich et al., "Sparsified
    SGD with memory" (2018).

    Attributes:
        fraction: Share of values that are sent, in (0, 1], rounded up to a whole number.
        then: Encodes the values; `TopK(0.01) >> Quantize(4)` says it.

    Raises:
        AdmissionError: if `fraction` is out of its bounds.
    """

    fraction: float
    then: Codec = Float32()

    def __post_init__(self) -> None:
        _check("TopK", self.fraction)

    @property
    def _own(self) -> Claims:
        """The largest share holds at least its share of the squares."""
        return Claims(kept=self.fraction)

    def _count(self, shared: Shared) -> int:
        return math.ceil(self.fraction * shared.length)

    def _head_bytes(self, shared: Shared) -> int:
        return PlaceCode(self._count(shared), shared.length).size if shared.length else 0

    def _split(self, vector: Vector, shared: Shared, rng: torch.Generator) -> tuple[bytes, Vector]:
        if not len(vector):
            return b"", vector
        count = self._count(shared)
        places = _largest(vector.numpy(), count)
        return PlaceCode(count, len(vector)).encode(places), vector[torch.from_numpy(places)]

    def _joined(self, head: Encoded, values: Read, shared: Shared, start: int, stop: int) -> Vector:
        vector = torch.zeros(stop - start)
        if start < stop:
            code = PlaceCode(self._count(shared), shared.length)
            places, before = code.within(head, start, stop)
            vector[torch.from_numpy(places)] = values(before, before + len(places))
        return vector


@dataclass(frozen=True)
class RandomMask(Partial):
    """Values at random places, the same for every client of a round, enlarged so that they are right on average.

    The places follow from the run's seed and the round, so they do not travel, and the values of all clients can be
    added before they are decoded. In every chunk of 2**16 values equally many are taken.

    Source: Konečný et al., "Federated learning: strategies for improving communication efficiency" (2016), §2.

    Attributes:
        fraction: Share of values that are sent, in (0, 1], rounded up to a whole number in every chunk.
        then: Encodes the values; `RandomMask(0.1) >> Quantize(8)` says it.

    Raises:
        AdmissionError: if `fraction` is out of its bounds.
    """

    fraction: float
    then: Codec = Float32()

    def __post_init__(self) -> None:
        _check("RandomMask", self.fraction)

    @property
    def _own(self) -> Claims:
        """A value is sent with probability `fraction`, 1 / fraction times as large."""
        return Claims(variance=1 / self.fraction - 1, growth=1 / self.fraction)

    def _of(self, chunk: int) -> int:
        """How many of a chunk's values are sent."""
        return math.ceil(self.fraction * chunk)

    def _count(self, shared: Shared) -> int:
        return shared.length // CHUNK * self._of(CHUNK) + self._of(shared.length % CHUNK)

    def _head_bytes(self, shared: Shared) -> int:
        return 0

    def _split(self, vector: Vector, shared: Shared, rng: torch.Generator) -> tuple[bytes, Made]:
        each = self._of(CHUNK)

        def sent(start: int, stop: int) -> Vector:
            first = start // each
            chunks = [vector[CHUNK * chunk :][:CHUNK] for chunk in range(first, -(-stop // each))]
            masks = (
                _mask(shared.seed, shared.round, CHUNK * (first + number), len(chunk), self._of(len(chunk)))
                for number, chunk in enumerate(chunks)
            )
            kept = [chunk[torch.from_numpy(mask)] for chunk, mask in zip(chunks, masks, strict=True)]
            return torch.cat(kept)[start - first * each : stop - first * each]

        return b"", Made(self._count(shared), sent)

    def _joined(self, head: Encoded, values: Read, shared: Shared, start: int, stop: int) -> Vector:
        vector = torch.zeros(stop - start)
        for first in range(start // CHUNK * CHUNK, stop, CHUNK):
            length = min(CHUNK, shared.length - first)
            places = _mask(shared.seed, shared.round, first, length, self._of(length))
            low, high = np.searchsorted(places, (start - first, stop - first))
            before = first // CHUNK * self._of(CHUNK)
            sent = values(before + int(low), before + int(high)) * (length / self._of(length))
            vector[torch.from_numpy(places[low:high] + (first - start))] = sent
        return vector


def ternary(fraction: float) -> TopK:
    """Sparse ternary compression: of the largest values only the sign, and a mean magnitude for every 4,096 of them.

    Biased: use it in `ErrorFeedback`, as its authors do.

    Source: Sattler et al., "Robust and communication-efficient federated learning from non-iid data" (2019).

    Args:
        fraction: Share of values that are sent, in (0, 1].
    """
    return TopK(fraction, Sign())


def _check(name: str, fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise AdmissionError(f"{name} sends a fraction in (0, 1] of the values, not {fraction}")


@lru_cache(maxsize=16)  # the server needs a chunk's mask once for each client
def _mask(seed: int, round: int, start: int, length: int, count: int) -> Places:
    """Ascending places of `count` values of a chunk."""
    keys = np.asarray(words(Shared(flat(length), seed, round).generator(f"mask {start}")).random_raw(length))
    last = np.partition(keys, count - 1)[count - 1]
    return np.flatnonzero(keys <= last)[:count]


def _largest(vector: npt.NDArray[np.float32], count: int) -> Places:
    """Ascending places of the `count` values of largest magnitude."""
    candidates = _at_least(vector, _guess(vector, count))
    if len(candidates) < count:
        candidates = np.arange(len(vector))
    magnitudes = np.abs(vector[candidates])
    least = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    above, equal = candidates[magnitudes > least], candidates[magnitudes == least]
    return np.sort(np.concatenate((above, equal[: count - len(above)])))


def _guess(vector: npt.NDArray[np.float32], count: int) -> float:
    """A magnitude that most likely somewhat more than `count` values reach, from a sample; 0 where it saves nothing."""
    sample = np.abs(vector[:: max(1, len(vector) // _SAMPLE)])
    expected = count * len(sample) / len(vector)
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 4)
    return float(np.partition(sample, len(sample) - rank)[len(sample) - rank]) if rank < len(sample) else 0.0


def _at_least(vector: npt.NDArray[np.float32], least: float) -> Places:
    """Ascending places of values whose magnitude is at least `least`."""
    threshold = np.float32(least)
    pieces = [
        np.flatnonzero(np.abs(vector[start : start + CHUNK]) >= threshold) + start
        for start in range(0, len(vector), CHUNK)
    ]
    return np.concatenate(pieces)
