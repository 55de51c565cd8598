"""Random rotations, after which a vector's values are like draws from one normal distribution, and codecs made for those.

A vector is cut into blocks of 4,096 values; what is left over is filled up with zeros to a power of two, at least 128.
A block is multiplied by random signs, then by a Hadamard matrix, and both once more: after the first Hadamard matrix
alone a block with two values far larger than the others would have only four values. The matrix is the Kronecker
product of two, so that multiplying by it takes two small matrix products.

Sources: Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform" (2009); Suresh et al., "Distributed mean
estimation with limited communication" (2017).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from koinon.core.rng import integer
from koinon.core.types import Vector
from koinon.update.codec import Claims, Codec, Encoded, Float32, Made, Shared
from koinon.update.partial import Partial, Read

BLOCK, LEAST = 1 << 12, 1 << 7
"""Values that are rotated together: of a whole block, and at least."""

GROUP = 1 << 17
"""Values that are worked on at a time."""

KEY_BYTES = 8


@dataclass(frozen=True)
class Rotate(Partial):
    """A random rotation of every 4,096 values, undone after decoding. It makes large values rare.

    Each client draws its own; the eight bytes that it follows from travel with the update.

    Attributes:
        then: Encodes the rotated values; `Rotate() >> Quantize(4)` says it.
    """

    then: Codec = Float32()

    @property
    def _own(self) -> Claims:
        """Lengths stay as they are."""
        return Claims()

    def _count(self, shared: Shared) -> int:
        return rotated_length(shared.length)

    def _head_bytes(self, shared: Shared) -> int:
        return KEY_BYTES

    def _split(self, vector: Vector, shared: Shared, rng: torch.Generator) -> tuple[bytes, Made]:
        key = integer(rng)

        def turned(start: int, stop: int) -> Vector:
            first = start // BLOCK * BLOCK
            part = vector[first : min(-(-stop // BLOCK) * BLOCK, len(vector))]
            values = torch.cat([rotated(blocks, key).reshape(-1) for _, blocks in blocks_of(part)])
            return values[start - first : stop - first]

        return key.to_bytes(KEY_BYTES, "little"), Made(rotated_length(len(vector)), turned)

    def _joined(self, head: Encoded, values: Read, shared: Shared, start: int, stop: int) -> Vector:
        key = key_of(head)
        return from_blocks(values, key, shared.length, start, stop)


def rotated_length(length: int) -> int:
    """Values after the rotation of `length` values."""
    whole, rest = divmod(length, BLOCK)
    return whole * BLOCK + (_tail(rest) if rest else 0)


def _tail(rest: int) -> int:
    return max(LEAST, 1 << (rest - 1).bit_length())


def blocks_of(vector: Vector) -> Iterator[tuple[int, torch.Tensor]]:
    """The blocks `[n, block]` of a vector, many at a time, each with the place of its first value."""
    whole = len(vector) // BLOCK * BLOCK
    for start in range(0, whole, GROUP):
        yield start, vector[start : min(start + GROUP, whole)].view(-1, BLOCK)
    if rest := len(vector) - whole:
        yield whole, torch.nn.functional.pad(vector[whole:], (0, _tail(rest) - rest))[None]


def key_of(head: Encoded) -> int:
    """The key of a rotation, from the first bytes of an update."""
    return int.from_bytes(head.read(0, KEY_BYTES), "little")


def from_blocks(values: Read, key: int, length: int, start: int, stop: int) -> Vector:
    """Elements `start .. stop` of a vector of `length`, of which `values` reads a range of rotated values."""
    vector, whole = torch.empty(stop - start), length // BLOCK * BLOCK
    first = start // BLOCK * BLOCK
    while first < stop:
        block = BLOCK if first < whole else _tail(length - whole)
        last = min(first + GROUP, -(-stop // BLOCK) * BLOCK, whole) if first < whole else first + block
        turned = rotated_back(values(first, last).view(-1, block), key).reshape(-1)
        low, high = max(start, first), min(stop, last)
        vector[low - start : high - start] = turned[low - first : high - first]
        first = last
    return vector


def rotated(blocks: torch.Tensor, key: int) -> torch.Tensor:
    """Blocks `[n, block]`, rotated."""
    first, second = _signs(key, blocks.shape[1])
    return _hadamard(_hadamard(blocks * first).mul_(second))


def rotated_back(blocks: torch.Tensor, key: int) -> torch.Tensor:
    """The inverse."""
    first, second = _signs(key, blocks.shape[1])
    return _hadamard(_hadamard(blocks).mul_(second)).mul_(first)


def _hadamard(blocks: torch.Tensor) -> torch.Tensor:
    """Each row of `[n, block]` times the symmetric orthonormal Hadamard matrix of its size."""
    bits = blocks.shape[1].bit_length() - 1
    left, right = _matrix(bits // 2), _matrix(bits - bits // 2)
    inner = blocks.reshape(-1, len(right)) @ right
    return torch.matmul(left, inner.view(-1, len(left), len(right))).view(blocks.shape)


@lru_cache
def _matrix(bits: int) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    for _ in range(bits):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.div_(len(matrix) ** 0.5)


@lru_cache(maxsize=64)  # the server needs a client's once for each block of columns
def _signs(key: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = np.asarray(np.random.SFC64(key).random_raw(2 * block // 64))
    bits = torch.from_numpy(np.unpackbits(drawn.astype("<u8").view(np.uint8), bitorder="little"))
    signs = bits.to(torch.float32).mul_(2.0).sub_(1.0)
    return signs[:block], signs[block:]
