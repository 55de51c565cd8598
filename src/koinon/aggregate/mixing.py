"""Steps before a rule, which make clients with different data look alike to it."""

from abc import abstractmethod
from dataclasses import dataclass

import torch

from koinon.aggregate.clipping import largest_clipped
from koinon.aggregate.geometry import Mixture, geometry
from koinon.aggregate.reducer import Contextual, Memory, Reducer, Round, Rows, reduced
from koinon.aggregate.rule import ContextualRule, Rule
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec, Vector


@dataclass(frozen=True)
class _Before(ContextualRule):
    """Base of what gives other rows to the rule `then`."""

    then: Reducer

    @abstractmethod
    def rows(self, rows: Rows, round: Round) -> tuple[Rows, Round]:
        """The rows that the rule is given, and the round as it sees it."""

    @property
    def least(self) -> int:
        """As the rule."""
        return self.then.least if isinstance(self.then, Rule) else 1

    def tolerates(self, updates: int) -> int:
        """As the rule."""
        return self.then.tolerates(updates) if isinstance(self.then, Rule) else 0

    def admit(self, spec: Spec) -> None:
        """As every robust rule, and as the rule that follows."""
        super().admit(spec)
        self.then.admit(spec)

    @property
    def root(self) -> object:
        """What the rule that follows wants the server to train on, or None."""
        return getattr(self.then, "root", None)

    def start(self, length: int) -> Memory:
        """The rule's."""
        return self.then.start(length) if isinstance(self.then, Contextual) else {}

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The rule on other rows."""
        self.check(len(rows.weights))
        return reduced(self.then, memory, *self.rows(rows, round))


@dataclass(frozen=True)
class NearestNeighborMixing(_Before):
    """Each update becomes the mean of its n - f nearest ones, itself among them.

    Source: Allouah et al., "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity" (2023), algorithm 2.

    Attributes:
        then: The rule for the means.
        f: Liars that a round may have, >= 0.

    Raises:
        AdmissionError: if f is negative.
    """

    f: int

    def __post_init__(self) -> None:
        _check(self, self.f)

    @property
    def least(self) -> int:
        """Of the rule, and 2 f + 1."""
        return max(super().least, 2 * self.f + 1)

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
class AdaptiveRobustClipping(_Before):
    """The updates with the largest norms, 2 f (n - f) / n of them, scaled down to the largest of the others.

    Source: Allouah et al., "Adaptive gradient clipping for robust federated learning" (2025).

    Attributes:
        then: The rule for what is left.
        f: Liars that a round may have, >= 0.

    Raises:
        AdmissionError: if f is negative.
    """

    f: int

    def __post_init__(self) -> None:
        _check(self, self.f)

    @property
    def least(self) -> int:
        """Of the rule, and 2 f + 1."""
        return max(super().least, 2 * self.f + 1)

    def rows(self, rows: Rows, round: Round) -> tuple[Rows, Round]:
        """The updates, some of them shorter."""
        return largest_clipped(rows, self.f), round


def _check(rule: Rule, f: int) -> None:
    if not isinstance(f, int) or f < 0:
        raise AdmissionError(f"{type(rule).__name__} needs a number of liars >= 0, not {f}")
