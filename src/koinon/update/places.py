"""Which places of a vector are taken, in few bits, so that those within any range can be found by themselves.

Places 0 <= p_0 < p_1 < … < n, `count` of them, as Elias and Fano code them: the lower bits of each as they are, and the
upper bits as a row of ones and zeros, where the one of p_i stands at place (p_i >> lower bits) + i. That takes
2 + log2(n / count) bits for each, half a bit more than the least there can be. A directory says how many places come
before each chunk of 2**16, which is half a bit more for each if they are one in a thousand. All sizes follow from n and `count`.

Source: Elias, "Efficient storage and retrieval by content and address of static files" (1974).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from koinon.update.codec import Encoded

CHUNK = 1 << 16
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PlaceCode:
    """How `count` places out of `length` are coded; 1 <= count <= length."""

    count: int
    length: int

    @property
    def size(self) -> int:
        """Bytes of the code."""
        return self._lower_at + self._lower * self._plane

    def encode(self, places: Places) -> bytes:
        """The bytes of ascending places."""
        bounds = CHUNK * np.arange(1, self._chunks)
        row = np.zeros(8 * self._row_bytes, dtype=np.uint8)
        row[(places >> self._lower) + np.arange(len(places))] = 1
        planes = [np.packbits((places >> bit) & 1, bitorder="little") for bit in range(self._lower)]
        pieces = (np.searchsorted(places, bounds).astype("<u4"), np.packbits(row, bitorder="little"), *planes)
        return b"".join(piece.tobytes() for piece in pieces)

    def within(self, encoded: Encoded, start: int, stop: int) -> tuple[Places, int]:
        """The places from `start` up to `stop`, counted from `start`, and how many come before them.

        Memory is in proportion to stop - start, whatever the bytes are.

        Raises:
            ValueError: if the bytes are no such places.
        """
        first, last = start // CHUNK, -(-stop // CHUNK)
        before, through = self._before(encoded, first), self._before(encoded, last)
        end = min(last * CHUNK, self.length)
        if not 0 <= before <= through <= self.count or through - before > end - first * CHUNK:
            raise ValueError("the directory of places is damaged")
        bucket, buckets = first * CHUNK >> self._lower, (end - 1 >> self._lower) + 1
        ones = np.flatnonzero(_bits(encoded, self._row_at, bucket + before, buckets + through))
        if len(ones) != through - before:
            raise ValueError("the places are not as many as their directory says")
        places = (ones - np.arange(len(ones)) + bucket) << self._lower
        for bit in range(self._lower):
            at = self._lower_at + bit * self._plane
            places |= _bits(encoded, at, before, through).astype(np.int64) << bit
        if len(places) and (places[-1] >= end or not np.all(places[1:] > places[:-1])):
            raise ValueError("the places do not ascend")
        low, high = np.searchsorted(places, (start, stop))
        return places[low:high] - start, before + int(low)

    @property
    def _lower(self) -> int:
        """Bits of a place that are kept as they are."""
        return min((self.length // self.count).bit_length() - 1, CHUNK.bit_length() - 1)

    @property
    def _chunks(self) -> int:
        return -(-self.length // CHUNK)

    @property
    def _row_at(self) -> int:
        return 4 * (self._chunks - 1)

    @property
    def _row_bytes(self) -> int:
        return (self.count + (self.length - 1 >> self._lower) + 8) // 8

    @property
    def _lower_at(self) -> int:
        return self._row_at + self._row_bytes

    @property
    def _plane(self) -> int:
        return -(-self.count // 8)

    def _before(self, encoded: Encoded, chunk: int) -> int:
        """How many places come before a chunk."""
        if chunk == 0 or chunk >= self._chunks:
            return 0 if chunk == 0 else self.count
        return int.from_bytes(encoded.read(4 * (chunk - 1), 4 * chunk), "little")


def _bits(encoded: Encoded, offset: int, start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Bits `start .. stop` of a row that begins at byte `offset`."""
    first = start // 8
    raw = np.frombuffer(encoded.read(offset + first, offset + -(-stop // 8)), dtype=np.uint8)
    return np.unpackbits(raw, bitorder="little")[start - 8 * first : stop - 8 * first]
