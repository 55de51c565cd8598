"""Signs, with one magnitude for many."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from koinon.core.errors import AdmissionError
from koinon.core.types import Vector
from koinon.update.codec import Claims, Encoded, Values, floats_as_bytes
from koinon.update.pack import pack_into, packed_bytes, unpack
from koinon.update.quantize import group_of, in_blocks, times_scales


@dataclass(frozen=True)
class Sign(Values):
    """One bit for each value, its sign, and for each block the mean magnitude. Biased: use it in `ErrorFeedback`.

    With `reducer=MajorityVote(step)` the magnitudes have no say. The sign of 0 is +.

    Source: Bernstein et al., "signSGD: compressed optimisation for non-convex problems" (2018); Karimireddy et al.,
    "Error feedback fixes SignSGD and other gradient compression schemes" (2019), whose magnitude this is.

    Attributes:
        block: Values that share one magnitude of four bytes, >= 1.

    Raises:
        AdmissionError: if `block` is less than 1.
    """

    ranged: ClassVar[bool] = True

    block: int = 4096

    def __post_init__(self) -> None:
        if self.block < 1:
            raise AdmissionError(f"Sign needs a block of at least one value, not {self.block}")

    @property
    def claims(self) -> Claims:
        """A block becomes its projection on its signs; the least is kept of one that has a single value."""
        return Claims(kept=1 / self.block)

    def _scales(self, length: int) -> int:
        return -(-length // self.block)

    def _size(self, length: int) -> int:
        return 4 * self._scales(length) + packed_bytes(1, length)

    def _encoded(self, vector: Vector, rng: torch.Generator) -> bytes | memoryview:
        encoded, scales = bytearray(self._size(len(vector))), torch.empty(self._scales(len(vector)))
        group = group_of(self.block)
        for start in range(0, len(vector), group):
            blocks = in_blocks(vector[start : start + group], self.block)
            sums = blocks.abs().sum(dim=1, dtype=torch.float64)
            scales[start // self.block :][: len(blocks)].copy_(sums / self.block)
            signs = (vector[start : start + group] >= 0).view(torch.uint8).numpy()
            pack_into(encoded, 4 * len(scales), 1, len(vector), start, signs)
        if len(vector) % self.block:  # the last block has fewer values than it was padded to
            scales[-1] *= self.block / (len(vector) % self.block)
        encoded[: 4 * len(scales)] = floats_as_bytes(scales)
        return memoryview(encoded)

    def _decoded(self, encoded: Encoded, length: int, start: int, stop: int) -> Vector:
        codes = unpack(encoded, 4 * self._scales(length), 1, length, start, stop)
        return times_scales(torch.from_numpy(codes).to(torch.float32).mul_(2.0).sub_(1.0), encoded, self.block, start)
