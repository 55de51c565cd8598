"""Floating-point numbers of 16 bits."""

from dataclasses import dataclass

import numpy as np
import torch

from koinon.core.types import Vector
from koinon.update.codec import Claims, Encoded, Values

_LARGEST = 65504.0

_GROUP = 1 << 16
"""Elements that are worked on at a time."""


@dataclass(frozen=True)
class Float16(Values):
    """IEEE half precision, rounded to nearest: 11 significant bits, half the bytes.

    Values beyond 65504 become 65504. Below 6e-5 there are fewer significant bits and below 3e-8 none, so nothing is
    claimed of vectors so small.
    """

    @property
    def claims(self) -> Claims:
        """Relative to a vector that may be tiny, nothing; its norm can double where values are near the smallest."""
        return Claims(kept=0.0, growth=2.0)

    def _size(self, length: int) -> int:
        return 2 * length

    def _encoded(self, vector: Vector, rng: torch.Generator) -> bytes | memoryview:
        halves = np.empty(len(vector), dtype="<f2")
        for start in range(0, len(vector), _GROUP):
            some = vector[start : start + _GROUP].clamp(-_LARGEST, _LARGEST)
            halves[start : start + len(some)] = some.to(torch.float16).numpy()
        return halves.view(np.uint8).data

    def _decoded(self, encoded: Encoded, length: int, start: int, stop: int) -> Vector:
        raw = np.frombuffer(encoded.read(2 * start, 2 * stop), dtype="<f2")
        return torch.from_numpy(raw.astype(np.float16)).to(torch.float32)


@dataclass(frozen=True)
class BFloat16(Values):
    """The upper half of a float32, rounded to nearest: 8 significant bits, all of float32's range, half the bytes."""

    @property
    def claims(self) -> Claims:
        """Each value is off by at most 2**-8 of itself."""
        return Claims(kept=1 - 2.0**-16, growth=1 + 2.0**-8)

    def _size(self, length: int) -> int:
        return 2 * length

    def _encoded(self, vector: Vector, rng: torch.Generator) -> bytes | memoryview:
        largest, halves = torch.finfo(torch.bfloat16).max, np.empty(len(vector), dtype="<i2")
        for start in range(0, len(vector), _GROUP):
            some = vector[start : start + _GROUP].clamp(-largest, largest)
            halves[start : start + len(some)] = some.to(torch.bfloat16).view(torch.int16).numpy()
        return halves.view(np.uint8).data

    def _decoded(self, encoded: Encoded, length: int, start: int, stop: int) -> Vector:
        raw = np.frombuffer(encoded.read(2 * start, 2 * stop), dtype="<i2")
        return torch.from_numpy(raw.astype(np.int16)).view(torch.bfloat16).to(torch.float32)
