"""Rules that bound how far any one update can pull."""

import math
from dataclasses import dataclass

import torch

from koinon.aggregate.geometry import COLUMNS, Mixture, combined, geometry
from koinon.aggregate.reducer import Memory, Round, Rows, block
from koinon.aggregate.rule import ContextualRule, Rule
from koinon.core.errors import AdmissionError
from koinon.core.types import Vector


@dataclass(frozen=True)
class NormClipping(Rule):
    """The mean of the updates, each scaled down to a norm.

    Bounds what liars can do, and does not tell them from others: a share p of liars moves the mean by up to p · norm.

    Source: Sun et al., "Can you really backdoor federated learning?" (2019).

    Attributes:
        norm: Largest L2 norm of an update, > 0.

    Raises:
        AdmissionError: if it is no positive finite number.
    """

    norm: float

    def __post_init__(self) -> None:
        _check(self, self.norm)

    @property
    def least(self) -> int:
        """1."""
        return 1

    def tolerates(self, updates: int) -> int:
        """None is told from the others."""
        return 0

    def reduce(self, rows: Rows) -> Vector:
        """The mean."""
        self.check(len(rows.weights))
        factors = self.norm / geometry(rows).norms.clamp(min=self.norm)
        return combined(rows, factors / len(factors))


@dataclass(frozen=True)
class CenteredClipping(ContextualRule):
    """Updates pull the last round's result towards them, each by at most a norm.

    Source: Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization" (2021), algorithm 2; made for
    clients with momentum (`kn.Momentum`).

    Attributes:
        norm: The farthest that an update can pull, > 0.
        steps: How often in a round, >= 1.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    norm: float
    steps: int = 1

    def __post_init__(self) -> None:
        _check(self, self.norm)
        if self.steps < 1:
            raise AdmissionError(f"CenteredClipping needs at least one step, not {self.steps}")

    @property
    def least(self) -> int:
        """1."""
        return 1

    def tolerates(self, updates: int) -> int:
        """A tenth, by its analysis."""
        return updates // 10

    def start(self, length: int) -> Memory:
        """Nowhere."""
        return {"center": torch.zeros(length)}

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The place to which it was pulled."""
        self.check(len(rows.weights))
        center = memory["center"].clone()
        for _ in range(self.steps):
            away = _distances_to(rows, center)
            factors = (self.norm / away.clamp(min=self.norm)) / len(away)
            center = (combined(rows, factors).double() + (1 - float(factors.sum())) * center.double()).to(torch.float32)
        return {"center": center}, center.clone()


def largest_clipped(rows: Rows, f: int) -> Mixture:
    """The updates with the largest norms scaled down to the largest of the others: adaptive robust clipping.

    Source: Allouah et al., "Adaptive gradient clipping for robust federated learning" (2025), algorithm 2.
    """
    norms = geometry(rows).norms
    count = len(norms)
    clipped = int(2 * f / count * (count - f))
    most = float(norms.sort().values[count - clipped - 1])
    factors = most / norms.clamp(min=max(most, 1e-300))
    return Mixture(rows, torch.diag(torch.where(norms > most, factors, torch.ones_like(factors))))


def _distances_to(rows: Rows, center: Vector) -> torch.Tensor:
    """Each row's distance to a point; float64 `[n]`."""
    squares = torch.zeros(len(rows.weights), dtype=torch.float64)
    for start in range(0, rows.length, COLUMNS):
        stop = min(start + COLUMNS, rows.length)
        squares += (block(rows, start, stop).double() - center[start:stop].double()).square().sum(1)
    return squares.sqrt()


def _check(rule: Rule, norm: float) -> None:
    if not (norm > 0 and math.isfinite(norm)):
        raise AdmissionError(f"{type(rule).__name__} needs a positive finite norm, not {norm}")
