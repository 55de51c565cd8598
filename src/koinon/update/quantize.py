"""Stochastic uniform quantisation."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from koinon.core.errors import AdmissionError
from koinon.core.rng import words
from koinon.core.types import Vector
from koinon.update.codec import Claims, Encoded, Values, floats_as_bytes, read_floats
from koinon.update.pack import pack_into, packed_bytes, unpack

GROUP = 1 << 16
"""Elements that are worked on at a time: what a core's cache holds."""


@dataclass(frozen=True)
class Quantize(Values):
    """Round each value, at random and without bias, to one of 2**bits levels between ± the largest of its block.

    A value between two levels goes to either with the probability that makes it right on average (to 2**-17 of a
    step). With few bits a rotation before it helps much: `Rotate() >> Quantize(2)`.

    Source: Suresh et al., "Distributed mean estimation with limited communication" (2017), §3; Alistarh et al., "QSGD"
    (2017), whose blocks these are.

    Attributes:
        bits: 1, 2, 4 or 8 for each value.
        block: Values that share one scale of four bytes, >= 1.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    ranged: ClassVar[bool] = True

    bits: int
    block: int = 256

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise AdmissionError(f"Quantize has 1, 2, 4 or 8 bits for a value, not {self.bits}")
        if self.block < 1:
            raise AdmissionError(f"Quantize needs a block of at least one value, not {self.block}")

    @property
    def claims(self) -> Claims:
        """A step is 2/(2**bits - 1) of the block's largest value, and its square's quarter the most of a variance."""
        return Claims(variance=self.block / self._steps**2, growth=math.sqrt(self.block))

    @property
    def _steps(self) -> int:
        return (1 << self.bits) - 1

    def _scales(self, length: int) -> int:
        return -(-length // self.block)

    def _size(self, length: int) -> int:
        return 4 * self._scales(length) + packed_bytes(self.bits, length)

    def _encoded(self, vector: Vector, rng: torch.Generator) -> bytes | memoryview:
        encoded, scales = bytearray(self._size(len(vector))), torch.empty(self._scales(len(vector)))
        draws, group = words(rng), group_of(self.block)
        for start in range(0, len(vector), group):
            blocks = in_blocks(vector[start : start + group], self.block)
            largest = scales[start // self.block :][: len(blocks)].copy_(_largest(blocks))
            levels = (blocks / largest.masked_fill(largest == 0, 1.0)[:, None]).reshape(-1)
            count = min(group, len(vector) - start)
            drawn = torch.from_numpy(draws.random_raw(-(-count // 4)).view(np.int16)[:count])
            # In [0, steps], and a dither of mean 1/2 below 1: what is cut off after the point rounds at random.
            shifted = levels[:count].add_(1.0).mul_(self._steps / 2).add_(drawn, alpha=2.0**-16).add_(0.5 + 2.0**-17)
            codes = shifted.clamp_(0, self._steps).to(torch.uint8).numpy()
            pack_into(encoded, 4 * len(scales), self.bits, len(vector), start, codes)
        encoded[: 4 * len(scales)] = floats_as_bytes(scales)
        return memoryview(encoded)

    def _decoded(self, encoded: Encoded, length: int, start: int, stop: int) -> Vector:
        offset = 4 * self._scales(length)
        codes = unpack(encoded, offset, self.bits, length, start, stop)
        levels = torch.from_numpy(codes).to(torch.float32).mul_(2.0).sub_(self._steps).div_(self._steps)
        return times_scales(levels, encoded, self.block, start)


def group_of(block: int) -> int:
    """How many elements to work on at a time: whole blocks, and whole bytes of any number of bits."""
    whole = math.lcm(block, 8)
    return max(1, GROUP // whole) * whole


def in_blocks(vector: Vector, block: int) -> torch.Tensor:
    """`[n]` as `[blocks, block]`, with zeros after the last where it has fewer."""
    if len(vector) % block == 0:
        return vector.view(-1, block)
    return torch.nn.functional.pad(vector, (0, -len(vector) % block)).view(-1, block)


def times_scales(values: Vector, encoded: Encoded, block: int, start: int, offset: int = 0) -> Vector:
    """Values from place `start` on, in place times the scales of their blocks, which lie from byte `offset` on."""
    stop = start + len(values)
    first, last = start // block, -(-stop // block)
    scales = read_floats(encoded, first, last, offset)
    inner, outer = -(-start // block), stop // block
    if inner > outer or start == stop:  # all within one block
        return values.mul_(scales[0]) if len(values) else values
    head, tail = inner * block - start, outer * block - start
    values[:head] *= scales[0]
    values[head:tail].view(-1, block).mul_(scales[inner - first : outer - first, None])
    values[tail:] *= scales[-1]
    return values


def _largest(blocks: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(blocks, dim=1)
    return torch.maximum(-low, high)
