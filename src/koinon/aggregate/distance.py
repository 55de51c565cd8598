"""Rules that choose among whole updates by how far they are from each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from koinon.aggregate.coordinatewise import around_median
from koinon.aggregate.geometry import combined, geometry, mean_of
from koinon.aggregate.reducer import Rows
from koinon.aggregate.rule import Tolerant
from koinon.aggregate.subset import closest_subset
from koinon.core.errors import AdmissionError
from koinon.core.types import Vector


@dataclass(frozen=True)
class Krum(Tolerant):
    """The update whose n - f - 2 nearest others are nearest, by the sum of squared distances.

    Source: Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient descent" (2017).
    """

    @property
    def least(self) -> int:
        """2 f + 3."""
        return 2 * self.f + 3

    def reduce(self, rows: Rows) -> Vector:
        """The chosen update itself."""
        self.check(len(rows.weights))
        return mean_of(rows, [int(krum_scores(geometry(rows).squared, self.f).argmin())])


@dataclass(frozen=True)
class MultiKrum(Tolerant):
    """The mean of the m updates with the best scores of `Krum`.

    Source: Blanchard et al. (2017), §4.

    Attributes:
        m: How many, >= 1; None: all but f.

    Raises:
        AdmissionError: if m is less than 1.
    """

    m: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None and self.m < 1:
            raise AdmissionError(f"MultiKrum takes the mean of at least one update, not {self.m}")

    @property
    def least(self) -> int:
        """2 f + 3, and m."""
        return max(2 * self.f + 3, self.m or 1)

    def reduce(self, rows: Rows) -> Vector:
        """The mean of the chosen."""
        count = len(rows.weights)
        self.check(count)
        scores = krum_scores(geometry(rows).squared, self.f)
        return mean_of(rows, scores.argsort(stable=True)[: self.m or count - self.f].tolist())


@dataclass(frozen=True)
class Bulyan(Tolerant):
    """Choose n - 2 f updates by `Krum`, one after another; of those, coordinate by coordinate, the mean around the median.

    Source: El Mhamdi et al., "The hidden vulnerability of distributed learning in Byzantium" (2018).
    """

    @property
    def least(self) -> int:
        """4 f + 3."""
        return 4 * self.f + 3

    def reduce(self, rows: Rows) -> Vector:
        """The mean of the n - 4 f chosen values that are nearest to the median of the chosen."""
        count = len(rows.weights)
        self.check(count)
        squared, left, chosen = geometry(rows).squared, list(range(count)), []
        for _ in range(count - 2 * self.f):
            scores = krum_scores(squared[left][:, left], self.f)
            chosen.append(left.pop(int(scores.argmin())))
        return around_median(rows, sorted(chosen), kept=count - 4 * self.f)


@dataclass(frozen=True)
class MinimumDiameter(Tolerant):
    """The mean of the n - f updates whose greatest distance from each other is the least (MDA, or minimum diameter).

    Its time doubles with every liar that has to be told from the others: f is at most 16.

    Source: El Mhamdi et al., "Genuinely distributed Byzantine machine learning" (2020).

    Raises:
        AdmissionError: if f is more than 16.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.f > 16:
            raise AdmissionError(f"MinimumDiameter would take years for {self.f} liars; use MultiKrum, or at most 16")

    def reduce(self, rows: Rows) -> Vector:
        """The mean of the subset."""
        self.check(len(rows.weights))
        return mean_of(rows, closest_subset(geometry(rows).squared, self.f))


@dataclass(frozen=True)
class FABA(Tolerant):
    """Leave out, f times, the update that is farthest from the mean of those that are left; the mean of the rest.

    Source: Xia et al., "FABA: an algorithm for fast aggregation against Byzantine attacks in distributed neural networks"
    (2019).
    """

    def reduce(self, rows: Rows) -> Vector:
        """The mean of n - f updates."""
        count = len(rows.weights)
        self.check(count)
        found, left = geometry(rows), list(range(count))
        for _ in range(self.f):
            distances = found.to(_even(left, count))[left]
            left.pop(int(distances.argmax()))
        return mean_of(rows, left)


@dataclass(frozen=True)
class CAF(Tolerant):
    """Weigh updates down by how far they lie along the direction in which all vary most, until f of weight are gone.

    Of the means on the way, that with the least variance along its worst direction.

    Source: Allouah et al., "Towards trustworthy federated learning with untrusted participants" (2025), algorithm 2.
    """

    def reduce(self, rows: Rows) -> Vector:
        """The best weighted mean."""
        count = len(rows.weights)
        self.check(count)
        found = geometry(rows)
        weights, best, least = torch.ones(count, dtype=torch.float64), None, float("inf")
        while best is None or float(weights.sum()) > count - 2 * self.f:
            mean = weights / weights.sum()
            variance, along = _worst_direction(found.products[:-1, :-1], mean)
            if variance < least:
                best, least = mean, variance
            farthest = float(along[weights > 0].max())  # who is out already must not shield those who are not
            if farthest == 0.0 or self.f == 0:
                break
            weights = (weights * (1 - along / farthest)).clamp(min=0.0)
        assert best is not None
        return combined(rows, best)


def krum_scores(squared: torch.Tensor, f: int) -> torch.Tensor:
    """Each update's sum of squared distances to its n - f - 2 nearest others, at least one; float64 `[n]`."""
    others = squared.clone().fill_diagonal_(float("inf"))
    nearest = max(len(squared) - f - 2, 1)
    return others.sort(dim=1).values[:, :nearest].sum(1)


def _worst_direction(products: torch.Tensor, mean: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The largest variance about a weighted mean, and each update's squared distance from it along that direction."""
    shift = products @ mean
    centred = products - shift[:, None] - shift + mean @ shift
    root = mean.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * centred * root)
    variance = float(values[-1])
    if variance <= 0:
        return 0.0, torch.zeros_like(mean)
    return variance, (centred @ (root * vectors[:, -1])).square() / variance


def _even(chosen: Sequence[int], count: int) -> torch.Tensor:
    coefficients = torch.zeros(count, dtype=torch.float64)
    coefficients[list(chosen)] = 1 / len(chosen)
    return coefficients
