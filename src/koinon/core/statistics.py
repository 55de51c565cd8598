"""Metrics that add up across clients: numbers whose sum over clients gives the metric over all examples.

The mean of the clients' AUROCs is not the AUROC of all their patients. So a client never reports a metric's
value; it reports a sufficient statistic, statistics are added, and the value is taken once at the end.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import msgspec
import numpy as np


class Ratio(msgspec.Struct, frozen=True, tag="ratio", array_like=True):
    """A mean over examples (accuracy, loss, squared error): a total and how many it is over."""

    total: float
    count: float

    def __add__(self, other: "Ratio") -> "Ratio":
        return Ratio(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; NaN over no examples."""
        return self.total / self.count if self.count else math.nan


class Ranking(msgspec.Struct, frozen=True, tag="ranking", array_like=True):
    """Two histograms of scores over equal bins of [0, 1], one per class: gives AUROC.

    Scores in one bin count as ties, so the error is at most half the product of the two classes'
    shares of a bin, summed over the bins.

    Raises:
        ValueError: if the two have different numbers of bins.
    """

    negatives: tuple[int, ...]
    positives: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.negatives) != len(self.positives):
            raise ValueError("a ranking needs as many bins for negatives as for positives")

    def __add__(self, other: "Ranking") -> "Ranking":
        if len(self.negatives) != len(other.negatives):
            raise ValueError("rankings with different numbers of bins cannot be added")
        return Ranking(
            tuple(a + b for a, b in zip(self.negatives, other.negatives, strict=True)),
            tuple(a + b for a, b in zip(self.positives, other.positives, strict=True)),
        )

    @property
    def value(self) -> float:
        """Probability that a positive scores above a negative, ties counting half; NaN without both."""
        negatives, positives = np.asarray(self.negatives, float), np.asarray(self.positives, float)
        pairs = negatives.sum() * positives.sum()
        below = np.concatenate(([0.0], np.cumsum(negatives)[:-1]))
        return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else math.nan


class Variation(msgspec.Struct, frozen=True, tag="variation", array_like=True):
    """Sums for the coefficient of determination R² of a regression with one target."""

    count: float
    total: float
    squares: float
    residual_squares: float

    def __add__(self, other: "Variation") -> "Variation":
        return Variation(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.residual_squares + other.residual_squares,
        )

    @property
    def value(self) -> float:
        """R²; NaN when the targets do not vary."""
        spread = self.squares - self.total**2 / self.count if self.count else 0.0
        return 1 - self.residual_squares / spread if spread > 0 else math.nan


Statistic: TypeAlias = Ratio | Ranking | Variation
Metrics: TypeAlias = Mapping[str, Statistic]


def merge(parts: Iterable[Metrics]) -> dict[str, Statistic]:
    """The statistics of all parts together; a name that only some parts have covers only those.

    Parts come from many owners: a statistic that is of another kind than the first of its name is left out.
    """
    merged: dict[str, Statistic] = {}
    for part in parts:
        for name, statistic in part.items():
            if name not in merged:
                merged[name] = statistic
            elif _alike(merged[name], statistic):
                merged[name] = merged[name] + statistic  # type: ignore[operator]
    return merged


def numbers(statistic: Statistic) -> list[float]:
    """A statistic's numbers, in order: they add up as the statistic does."""
    fields = msgspec.structs.astuple(statistic)
    return [float(number) for field in fields for number in (field if isinstance(field, tuple) else (field,))]


def from_numbers(like: Statistic, given: Iterator[float]) -> Statistic:
    """The statistic, of the kind and size of another, that has the next of these numbers."""
    if isinstance(like, Ranking):
        bins = len(like.negatives)
        counts = tuple(round(next(given)) for _ in range(2 * bins))
        return Ranking(counts[:bins], counts[bins:])
    return type(like)(*(next(given) for _ in msgspec.structs.fields(like)))


def values(metrics: Metrics) -> dict[str, float]:
    """The metrics' values, for a person."""
    return {name: statistic.value for name, statistic in metrics.items()}


def _alike(one: Statistic, other: Statistic) -> bool:
    if isinstance(one, Ranking) and isinstance(other, Ranking):
        return len(one.negatives) == len(other.negatives)
    return type(one) is type(other)
