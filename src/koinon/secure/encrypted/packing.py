"""Ring elements in the slots of ciphertexts: words of 32 bits, each of one coordinate or, where these are narrow, of several."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from koinon.secure.mask import Words
from koinon.secure.ring import MOST_BITS, Ring

Slots = npt.NDArray[np.uint32]
"""What slots hold, modulo 2**32."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How the encoded vectors of a ring become words, so that the words' sum, modulo 2**32, holds the vectors' sum.

    A word is the sum of its coordinates, as numbers around 0, times 1, 2**bits, 2**(2 * bits), ... The ring's sums stay within
    `bits` bits, so they are read out again from the lowest on. What travels behind the vector has words of its own.

    Attributes:
        ring: What vectors are encoded in.
    """

    ring: Ring

    @property
    def each(self) -> int:
        """Coordinates of a word."""
        return MOST_BITS // self.ring.bits

    @property
    def count(self) -> int:
        """W, words of a vector."""
        return self._wide + self.ring.size - self.ring.length

    def pack(self, encoded: Words) -> Slots:
        """An encoded vector as words; uint32 `[W]`."""
        words = np.zeros(self.count, dtype=np.uint32)
        for place in range(self.each):
            part = self._around_zero(encoded[place : self.ring.length : self.each].astype(np.uint32))
            words[: len(part)] += part << np.uint32(place * self.ring.bits)
        words[self._wide :] = encoded[self.ring.length :].astype(np.uint32) & self._modulus
        return words

    def unpack(self, words: Slots) -> Words:
        """The sum of encoded vectors from the sum of their words; uint16 or uint32 `[L]`."""
        encoded, left = self.ring.zeros(), words[: self._wide].copy()
        for place in range(self.each):
            room = encoded[place : self.ring.length : self.each]
            part = self._around_zero(left)
            room[:] = (part[: len(room)] & self._modulus).astype(encoded.dtype)
            if self.each > 1:
                left = (left - part) >> np.uint32(self.ring.bits)
        encoded[self.ring.length :] = (words[self._wide :] & self._modulus).astype(encoded.dtype)
        return encoded

    @property
    def _wide(self) -> int:
        return -(-self.ring.length // self.each)

    @property
    def _modulus(self) -> np.uint32:
        return np.uint32(2**self.ring.bits - 1)

    def _around_zero(self, values: Slots) -> Slots:
        """The lowest bits as two's complement of 32 bits."""
        half = np.uint32(2 ** (self.ring.bits - 1))
        return ((values + half) & self._modulus) - half
