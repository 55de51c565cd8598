"""Steps before a rule, which make clients with different data look alike to it."""

from abc import abstractmethod
from dataclasses import dataclass

import torch

from koinon.aggregate.clipping import largest_clipped
from koinon.aggregate.geometry import Mixture, geometry
from koinon.aggregate.reducer import Memory, Round, Rows, reduced
from koinon.aggregate.rule import Around, ContextualRule
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec, Vector


@dataclass(frozen=True)
class _Before(Around):
    """Base of what gives other rows to the rule that follows."""

    @abstractmethod
    def rows(self, rows: Rows, round: Round) -> tuple[Rows, Round]:
        """The rows that the rule is given, and the round as it sees it."""

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The rule on other rows."""
        self.check(len(rows.weights))
        return reduced(self.then, memory, *self.rows(rows, round))


@dataclass(frozen=True)
class _Bearing(_Before):
    """Base of those that are made for f liars."""

    f: int

    def __post_init__(self) -> None:
        if not isinstance(self.f, int) or self.f < 0:
            raise AdmissionError(f"{type(self).__name__} needs a number of liars >= 0, not {self.f}")

    @property
    def least(self) -> int:
        """Of the rule, and 2 f + 1."""
        return max(super().least, 2 * self.f + 1)


@dataclass(frozen=True)
class NearestNeighborMixing(_Bearing):
    """Each update becomes the mean of its n - f nearest ones, itself among them.

    Source: Allouah et al., "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity" (2023), algorithm 2.

    Attributes:
        then: The rule for the means.
        f: Liars that a round may have, >= 0.

    Raises:
        AdmissionError: if f is negative.
    """

    def rows(self, rows: Rows, round: Round) -> tuple[Rows, Round]:
        """The means."""
        squared = geometry(rows).squared
        nearest = squared.argsort(dim=1, stable=True)[:, : len(squared) - self.f]
        matrix = torch.zeros_like(squared).scatter_(1, nearest, 1 / nearest.shape[1])
        return Mixture(rows, matrix), round


@dataclass(frozen=True)
class Bucketing(_Before):
    """Means of so many updates at a time, put together by lot.

    A bucket with one liar is a lie: the rule must bear as many as there are liars, among fewer rows.

    Source: Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing" (2022), algorithm 1.

    Attributes:
        then: The rule for the means.
        size: Updates in a bucket, >= 1; the last may have fewer.

    Raises:
        AdmissionError: if the size is less than 1.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise AdmissionError(f"Bucketing needs buckets of at least one update, not {self.size}; 2 is usual")

    @property
    def least(self) -> int:
        """As many full buckets as the rule needs rows."""
        return (super().least - 1) * self.size + 1

    def tolerates(self, updates: int) -> int:
        """What the rule bears of so many buckets."""
        return super().tolerates(-(-updates // self.size))

    def admit(self, spec: Spec) -> None:
        """As every robust rule; the rule that follows sees fewer rows than there are updates."""
        ContextualRule.admit(self, spec)

    def rows(self, rows: Rows, round: Round) -> tuple[Rows, Round]:
        """The means."""
        order = torch.randperm(len(rows.weights), generator=round.rng)
        buckets = [order[start : start + self.size] for start in range(0, len(order), self.size)]
        matrix = torch.zeros(len(buckets), len(order), dtype=torch.float64)
        for number, bucket in enumerate(buckets):
            matrix[number, bucket] = 1 / len(bucket)
        names = tuple(f"bucket {number}" for number in range(len(buckets)))
        return Mixture(rows, matrix), Round(round.number, names, round.rng, round.root)


@dataclass(frozen=True)
class AdaptiveRobustClipping(_Bearing):
    """The updates with the largest norms, 2 f (n - f) / n of them, scaled down to the largest of the others.

    Source: Allouah et al., "Adaptive gradient clipping for robust federated learning" (2025).

    Attributes:
        then: The rule for what is left.
        f: Liars that a round may have, >= 0.

    Raises:
        AdmissionError: if f is negative.
    """

    def rows(self, rows: Rows, round: Round) -> tuple[Rows, Round]:
        """The updates, some of them shorter."""
        return largest_clipped(rows, self.f), round
