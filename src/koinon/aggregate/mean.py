"""The weighted mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from koinon.aggregate.reducer import Matrix, Rows
from koinon.core.types import Spec, Vector

BLOCK = 1 << 17
"""Columns that are added up at a time: 1 MiB of float64 accumulator. Eight times as many are no faster, and the
allocator then keeps 60 MiB of what they leave behind."""

_EXACT = 1 << 29
"""Integers below this times a float32 are float64 numbers, so that it makes no difference whether the product is rounded
before it is added: processors that multiply and add at once do not. It saves half of the time."""


@dataclass(frozen=True)
class Mean:
    """The weighted mean, accumulated in float64 in the order of the rows.

    It needs only the sum of the updates, never one of them alone. When all weights are 0 the result is 0:
    clients without examples move nothing.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (2017).
    """

    def admit(self, spec: Spec) -> None:
        """Any update will do."""

    def reduce(self, rows: Rows) -> Vector:
        """The mean, block by block: memory is the result and one block, however many rows there are.

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

    def init(self, length: int) -> tuple[torch.Tensor, float]:
        """A sum of nothing, and its weight."""
        return torch.zeros(length, dtype=torch.float64), 0.0

    def add(self, state: tuple[torch.Tensor, float], row: Vector, weight: float) -> tuple[torch.Tensor, float]:
        """One more update."""
        total, weights = state
        if float(weight).is_integer() and weight < _EXACT:
            return total.add_(row, alpha=weight), weights + weight
        return total.add_(row.to(torch.float64).mul_(weight)), weights + weight

    def finish(self, state: tuple[torch.Tensor, float]) -> Vector:
        """The mean."""
        total, weights = state
        return total.div_(weights or 1.0).to(torch.float32)

    def __call__(self, updates: torch.Tensor, weights: Sequence[float] | None = None) -> Vector:
        """The mean of the rows of a float32 tensor `[n, D]`.

        Raises:
            ValueError: if there are no rows.
        """
        if len(updates) == 0:
            raise ValueError("the mean of no updates is not defined")
        return self.reduce(Matrix(updates, [1.0] * len(updates) if weights is None else weights))
