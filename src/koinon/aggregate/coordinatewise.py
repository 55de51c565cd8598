"""Rules that choose in each coordinate by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from koinon.aggregate.kernels import in_order, middle_mean
from koinon.aggregate.reducer import Rows, block
from koinon.aggregate.rule import Majority, Tolerant
from koinon.core.types import Vector

COLUMNS = 1 << 16
"""Columns that are gathered at a time from rows that are not in one piece: 26 MB for a hundred rows."""


@dataclass(frozen=True)
class Median(Majority):
    """The median of each coordinate; of an even number of updates, the mean of the middle two.

    Source: Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates" (2018).
    """

    def reduce(self, rows: Rows) -> Vector:
        """The middle."""
        count = len(rows.weights)
        self.check(count)
        return by_columns(rows, lambda values: middle_mean(values, (count - 1) // 2, count // 2 + 1))


@dataclass(frozen=True)
class TrimmedMean(Tolerant):
    """In each coordinate the mean without the f least and the f greatest values.

    Source: Yin et al. (2018).
    """

    def reduce(self, rows: Rows) -> Vector:
        """The mean of n - 2 f values."""
        count = len(rows.weights)
        self.check(count)
        return by_columns(rows, lambda values: middle_mean(values, self.f, count - self.f))


@dataclass(frozen=True)
class MeanAroundMedian(Tolerant):
    """In each coordinate the mean of the n - f values that are nearest to the median.

    Source: Xie et al., "Generalized Byzantine-tolerant SGD" (2018), definition 7.
    """

    def reduce(self, rows: Rows) -> Vector:
        """The mean of n - f values."""
        count = len(rows.weights)
        self.check(count)
        return around_median(rows, range(count), kept=count - self.f)


def around_median(rows: Rows, chosen: Sequence[int], kept: int) -> Vector:
    """Of some rows, in each coordinate the mean of the `kept` values that are nearest to their median."""
    picked = list(chosen)
    return by_columns(rows, lambda values: _around_median(values[picked], kept))


def by_columns(rows: Rows, rule: Callable[[torch.Tensor], torch.Tensor]) -> Vector:
    """What a rule for float32 `[n, B]` makes of all columns."""
    result = torch.empty(rows.length)
    for start in range(0, rows.length, COLUMNS):
        stop = min(start + COLUMNS, rows.length)
        result[start:stop] = rule(block(rows, start, stop))
    return result


def _around_median(values: torch.Tensor, kept: int) -> torch.Tensor:
    """The nearest to the median are neighbours in order: of all such windows the one whose worse end is nearest."""
    ordered = in_order(values).to(torch.float64)
    count = len(ordered)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    windows = count - kept + 1
    worse = torch.maximum(middle - ordered[:windows], ordered[kept - 1 :] - middle)
    start = worse.argmin(0)
    kept_values = torch.stack([ordered.gather(0, (start + step)[None])[0] for step in range(kept)])
    return kept_values.mean(0)
