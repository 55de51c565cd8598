"""The geometric median."""

import math
from dataclasses import dataclass

import torch

from koinon.aggregate.geometry import Geometry, combined, geometry
from koinon.aggregate.reducer import Rows
from koinon.aggregate.rule import Majority
from koinon.core.errors import AdmissionError
from koinon.core.types import Vector


@dataclass(frozen=True)
class GeometricMedian(Majority):
    """The point with the least sum of distances to all updates (RFA), by smoothed Weiszfeld steps.

    The steps take place among the weights of the updates, of which every iterate is a mean; one pass over the updates
    before them and one after is all there is.

    Source: Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning" (2022), algorithm 2.

    Attributes:
        steps: The most that are made, >= 1; they end earlier once the weights stand still.
        smoothing: Distances below this share of the median one count as so much; > 0.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    steps: int = 1000
    smoothing: float = 1e-6

    def __post_init__(self) -> None:
        if self.steps < 1 or not (self.smoothing > 0 and math.isfinite(self.smoothing)):
            raise AdmissionError(
                f"GeometricMedian needs steps >= 1 and a smoothing > 0, not {self.steps} and {self.smoothing}; leave them out"
            )

    def reduce(self, rows: Rows) -> Vector:
        """The mean with the weights at which the steps end."""
        self.check(len(rows.weights))
        return combined(rows, self.weights(geometry(rows)))

    def weights(self, found: Geometry) -> torch.Tensor:
        """The updates' weights in their geometric median; float64 `[n]`, summing to 1."""
        count = len(found.products) - 1
        weights = torch.full((count,), 1 / count, dtype=torch.float64)
        least = self.smoothing * float(found.to(weights).sqrt().median())
        for _ in range(self.steps):
            inverse = 1 / found.to(weights).sqrt().clamp(min=max(least, 1e-300))
            following = inverse / inverse.sum()
            moved = float((following - weights).abs().max())
            weights = following
            if moved < 1e-12:
                break
        return weights
