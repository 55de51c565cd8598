"""A vote on every sign."""

import math
from dataclasses import dataclass

import torch

from koinon.aggregate.mean import BLOCK
from koinon.aggregate.reducer import Rows
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec, Vector


@dataclass(frozen=True)
class MajorityVote:
    """Every coordinate moves by `step` the way that most of the weight points; by nothing where it is even.

    Whoever lies can turn a coordinate only with as much weight as the majority leads by, and never move it farther. With
    `codec=Sign()` one bit for a coordinate is all that it needs.

    Source: Bernstein et al., "signSGD with majority vote is communication efficient and fault tolerant" (2019).

    Attributes:
        step: How far, > 0, in the units of the model's weights.

    Raises:
        AdmissionError: if `step` is not a positive finite number.
    """

    step: float

    def __post_init__(self) -> None:
        if not (self.step > 0 and math.isfinite(self.step)):
            raise AdmissionError(f"MajorityVote needs a positive finite step, not {self.step}")

    def admit(self, spec: Spec) -> None:
        """It has to see the signs of each update."""
        if not spec.visible:
            raise AdmissionError(
                "MajorityVote needs each update's signs, and only sums are visible; use reducer=Mean()"
            )

    def reduce(self, rows: Rows) -> Vector:
        """The outcome, block by block.

        Raises:
            ValueError: if there are no rows.
        """
        result = torch.empty(rows.length)
        for start in range(0, rows.length, BLOCK):
            stop = min(start + BLOCK, rows.length)
            state = self.init(stop - start)
            for row, weight in zip(rows.columns(start, stop), rows.weights, strict=True):
                state = self.add(state, row, weight)
            result[start:stop] = self.finish(state)
        return result

    def init(self, length: int) -> torch.Tensor:
        """No votes yet."""
        return torch.zeros(length, dtype=torch.float64)

    def add(self, state: torch.Tensor, row: Vector, weight: float) -> torch.Tensor:
        """One more vote on every coordinate; one that does not move abstains."""
        return state.add_(row.sign(), alpha=weight)

    def finish(self, state: torch.Tensor) -> Vector:
        """The outcome."""
        return state.sign_().mul_(self.step).to(torch.float32)
