"""Vectors of fixed-point numbers modulo 2**bits, of which any so many add up without overflow.

A coordinate is clipped, divided by a step and rounded at random without bias to a whole number between -levels and
levels, where clients * levels stays below 2**(bits - 1). So a sum of all, taken modulo 2**bits, is the sum. The clip is a
bound on coordinates; an L2 norm is one too.

Behind the vector travel tallies: weights, counts, statistics, which need more range than a coordinate has. Each is a whole
number in limbs, one coordinate for each limb, so narrow that even the limbs' sum does not overflow. Last come a few zeros: if
they are none in the sum, masks did not cancel, and nothing in it is right.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from koinon.core.errors import AdmissionError, ClientFailed, ProtocolViolation
from koinon.core.noise import Noise
from koinon.core.rng import words
from koinon.core.skellam import LARGEST, skellam
from koinon.core.types import Vector, finite
from koinon.secure.mask import Words

MOST_BITS = 32
"""Widest ring."""

CHECKS = 4
"""Zeros at the end."""

_BLOCK = 1 << 14  # elements at a time: four buffers of eight bytes each stay in the cache


@dataclass(frozen=True, slots=True)
class Tally:
    """A number that is summed beside the vector.

    Attributes:
        most: Largest magnitude; what is beyond is cut off.
        step: What it is rounded to multiples of, > 0.
    """

    most: float
    step: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.step <= self.most < math.inf and self.most / self.step < 2**53):
            raise AdmissionError(
                f"a tally needs 0 < step <= most < 2**53 steps, not step={self.step}, most={self.most}"
            )

    @property
    def levels(self) -> int:
        """Largest whole number that stands for a value."""
        return math.ceil(self.most / self.step)


@dataclass(frozen=True, slots=True)
class Ring:
    """How vectors become elements of a ring, and their sum becomes numbers again.

    Attributes:
        bits: The modulus is 2**bits; 2 to 32.
        clients: How many are added up at most.
        clip: Largest magnitude of a coordinate, > 0; what is beyond is cut off.
        length: D, coordinates of a vector.
        step: Coordinates become multiples of it; None: the finest that cannot overflow.
        tallies: What travels behind the vector.
        noise: Standard deviation of each client's own Skellam noise, in the vector's units; 0: none.

    Raises:
        AdmissionError: if the sum could overflow; the message says how many bits it takes.
    """

    bits: int
    clients: int
    clip: float
    length: int
    step: float | None = None
    tallies: tuple[Tally, ...] = ()
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.clip < math.inf and (self.step is None or 0 < self.step < math.inf)):
            raise AdmissionError(f"a ring needs a finite clip and step above 0, not clip={self.clip}, step={self.step}")
        if self.clients < 1 or self.length < 0:
            raise AdmissionError(f"a ring is for clients and coordinates, not {self.clients} and {self.length}")
        if self.noise and not 1e-4 <= (self.noise / self.resolution) ** 2 <= LARGEST:
            raise AdmissionError(
                f"noise of {self.noise:g} in steps of {self.resolution:g} cannot be drawn exactly; give a step of about a thousandth of it"
            )
        wanted = 1 if self.step is None else math.ceil(self.clip / self.step)
        needed = bits_needed(self.clients, wanted)
        if self.tallies:
            needed = max(needed, self.clients.bit_length() + 1)  # a limb of one bit at least
        if not 2 <= self.bits <= MOST_BITS or needed > self.bits:
            cure = (
                ""
                if needed <= MOST_BITS
                else f"; there are at most {MOST_BITS}, so take a larger step or fewer clients"
            )
            raise AdmissionError(
                f"the sum of {self.clients} clients' coordinates of up to ±{wanted} steps overflows {self.bits} bits; it "
                f"needs bits={needed}{cure}"
            )

    @property
    def levels(self) -> int:
        """Largest whole number that stands for a coordinate."""
        if self.step is not None:
            return math.ceil(self.clip / self.step)
        return ((1 << (self.bits - 1)) - 1) // self.clients

    @property
    def resolution(self) -> float:
        """The step in use, in the vector's units; a sum is within `clients` of them, and its expectation is exact."""
        return self.clip / self.levels if self.step is None else self.step

    @property
    def size(self) -> int:
        """L, coordinates of an encoded vector: D, a few for each tally, and the zeros."""
        return self.length + sum(self._limbs(tally) for tally in self.tallies) + CHECKS

    @property
    def width(self) -> int:
        """Bytes of a coordinate on the wire."""
        return -(-self.bits // 8)

    @property
    def wire_bytes(self) -> int:
        """Bytes of an encoded vector on the wire."""
        return self.width * self.size

    def zeros(self) -> Words:
        """An empty sum; uint16 or uint32 `[L]`."""
        return np.zeros(self.size, dtype=np.uint16) if self.bits <= 16 else np.zeros(self.size, dtype=np.uint32)

    def encode(self, vector: Vector, rng: torch.Generator, tallies: Sequence[float] = ()) -> Words:
        """A vector and its tallies in the ring; uint16 or uint32 `[L]`.

        Args:
            vector: Finite float32 `[D]`, which is not changed.
            rng: The client's own draws of the round: a coordinate between two multiples of the step goes to either with
                the probability that makes it right on average.
            tallies: As many finite numbers as the ring has tallies.

        Raises:
            ClientFailed: if something is not finite.
            ValueError: if there are more or fewer numbers than the ring has room for.
        """
        if vector.shape != (self.length,) or len(tallies) != len(self.tallies):
            raise ValueError(
                f"a vector {list(vector.shape)} with {len(tallies)} tallies for [{self.length}] with {len(self.tallies)}"
            )
        if not (finite(vector) and all(map(math.isfinite, tallies))):
            raise ClientFailed("the update is not finite; nothing of it can enter a sum")
        encoded, draws = self.zeros(), words(rng)
        values, most, scale = vector.numpy(), self.levels, 1 / self.resolution
        exact, chance = np.empty(_BLOCK), np.empty(_BLOCK)
        for start in range(0, self.length, _BLOCK):
            block = values[start : start + _BLOCK]
            level, draw = exact[: len(block)], chance[: len(block)]
            drawn = draws.random_raw(-(-len(block) // 2)).view(np.uint32)[: len(block)]
            np.multiply(block, scale, out=level, dtype=np.float64)
            np.multiply(drawn, 2.0**-32, out=draw)
            np.clip(level, -most, most, out=level)
            np.floor(np.add(level, draw, out=level), out=level)
            encoded[start : start + len(block)] = level.astype(np.int32).view(np.uint32)  # two's complement
        place = self.length
        for tally, value in zip(self.tallies, tallies, strict=True):
            whole = tally.levels + max(-tally.levels, min(tally.levels, round(value / tally.step)))
            for _ in range(self._limbs(tally)):
                encoded[place] = whole & (2**self._limb_bits - 1)
                whole >>= self._limb_bits
                place += 1
        return encoded

    def blur(self, encoded: Words, noise: Noise) -> Words:
        """Add the client's own noise to an encoded vector, in place, and not to what travels behind it."""
        values = encoded[: self.length]
        drawn = skellam(noise, self.length, (self.noise / self.resolution) ** 2)
        np.add(values, drawn.astype(np.uint32 if self.bits > 16 else np.uint16), out=values)
        return encoded

    def norm(self, encoded: Words) -> float:
        """The L2 norm of an encoded vector without what travels behind it, in the vector's units."""
        return self.resolution * math.sqrt(sum(float(np.dot(part, part)) for part in self._signed(encoded)))

    def largest(self, encoded: Words) -> float:
        """The same for the L1 norm."""
        return self.resolution * sum(float(np.abs(part).sum()) for part in self._signed(encoded))

    def decode(self, total: Words, count: int) -> tuple[Vector, tuple[float, ...]]:
        """The sum of `count` vectors, float32 `[D]`, and of their tallies, from the sum of what `encode` made.

        Raises:
            ProtocolViolation: if it is no such sum, since masks are left in it.
        """
        modulus, values = 2**self.bits - 1, torch.empty(self.length)
        if any(int(check) & modulus for check in total[self.size - CHECKS :]):
            raise ProtocolViolation("the masks of this sum did not cancel: a client used another one than it agreed on")
        out = values.numpy()
        for start, signed in zip(range(0, self.length, _BLOCK), self._signed(total), strict=True):
            np.multiply(
                signed, self.resolution, out=out[start : start + len(signed)], dtype=np.float64, casting="same_kind"
            )
        sums, place = [], self.length
        for tally in self.tallies:
            limbs = self._limbs(tally)
            parts = [int(part) & modulus for part in total[place : place + limbs]]
            whole = sum(part << (self._limb_bits * number) for number, part in enumerate(parts))
            sums.append((whole - count * tally.levels) * tally.step)
            place += limbs
        return values, tuple(sums)

    def pack(self, encoded: Words) -> bytes:
        """A vector in the ring as bytes: each coordinate little-endian, in as few bytes as hold the modulus."""
        rest = encoded & encoded.dtype.type(2**self.bits - 1) if self.bits % 8 else encoded
        raw = rest.astype(rest.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(-1, rest.itemsize)
        return raw[:, : self.width].tobytes()

    def unpack(self, data: bytes | memoryview) -> Words:
        """What `pack` was given, modulo 2**bits.

        Raises:
            ProtocolViolation: if it has another length.
        """
        if len(data) != self.wire_bytes:
            raise ProtocolViolation(f"a masked update has {len(data)} bytes where {self.wire_bytes} were expected")
        encoded = self.zeros()
        room = encoded.view(np.uint8).reshape(-1, encoded.itemsize)
        room[:, : self.width] = np.frombuffer(data, dtype=np.uint8).reshape(-1, self.width)
        return encoded

    def _signed(self, encoded: Words) -> Iterator[npt.NDArray[np.float64]]:
        """The coordinates of a vector as whole numbers around 0, block by block."""
        modulus, half = np.uint32(2**self.bits - 1), np.uint32(2 ** (self.bits - 1))
        for start in range(0, self.length, _BLOCK):
            block = encoded[start : min(start + _BLOCK, self.length)].astype(np.uint32)
            yield (((block + half) & modulus) - half).view(np.int32).astype(np.float64)

    @property
    def _limb_bits(self) -> int:
        return self.bits - self.clients.bit_length()

    def _limbs(self, tally: Tally) -> int:
        return -(-(2 * tally.levels).bit_length() // self._limb_bits)


def bits_needed(clients: int, levels: int) -> int:
    """Bits of the smallest ring in which the sum of so many numbers from -levels to levels does not overflow."""
    return (clients * levels).bit_length() + 1
