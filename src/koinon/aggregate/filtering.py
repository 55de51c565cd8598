"""Rules that find out who lies, and take the mean of the others."""

import math
from dataclasses import dataclass

import torch

from koinon.aggregate.geometry import COLUMNS, combined, geometry, mean_of
from koinon.aggregate.reducer import Memory, Round, Rows, block
from koinon.aggregate.rule import ContextualRule, Majority, Tolerant
from koinon.core.errors import AdmissionError
from koinon.core.types import Vector


@dataclass(frozen=True)
class DnC(Tolerant, ContextualRule):
    """Divide and conquer: leave out those that lie farthest along the direction in which all vary most.

    Source: Shejwalkar and Houmansadr, "Manipulating the Byzantine" (2021), algorithm 2.

    Attributes:
        filter: How many are left out for each liar, >= 1.
        columns: Coordinates that are looked at, drawn by lot, >= 1.
        draws: How often; who is left out once is left out.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    filter: float = 1.0
    columns: int = 10_000
    draws: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter < 1 or self.columns < 1 or self.draws < 1:
            raise AdmissionError("DnC needs filter, columns and draws of at least 1; leave them out for the usual ones")

    @property
    def least(self) -> int:
        """So many that one is left."""
        return max(2 * self.f + 1, math.ceil(self.filter * self.f * self.draws) + 1)

    def reduce(self, rows: Rows) -> Vector:
        """As a first round."""
        return ContextualRule.reduce(self, rows)

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The mean of those that were never left out."""
        count = len(rows.weights)
        self.check(count)
        kept = set(range(count))
        for _ in range(self.draws):
            values = _drawn(rows, self.columns, round.rng).double()
            values -= values.mean(0)
            direction = torch.linalg.eigh(values @ values.T).eigenvectors[:, -1]
            left_out = direction.square().argsort(descending=True, stable=True)[: math.ceil(self.filter * self.f)]
            kept -= set(left_out.tolist())
        return memory, mean_of(rows, sorted(kept))


@dataclass(frozen=True)
class FoolsGold(ContextualRule):
    """Weigh clients down that pull in the same direction round after round: Sybils of one attacker.

    It remembers one vector for each client that ever took part.

    Source: Fung, Yoon, Beschastnikh, "The limitations of federated learning in Sybil settings" (2020), algorithm 1.
    """

    @property
    def least(self) -> int:
        """1."""
        return 1

    def tolerates(self, updates: int) -> int:
        """Any number, if they act alike; none that does not."""
        return 0

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The mean by weights, which is 0 if all act alike."""
        self.check(len(rows.weights))
        history = {name: vector.clone() for name, vector in memory.items()}
        for start in range(0, rows.length, COLUMNS):
            stop = min(start + COLUMNS, rows.length)
            for client, row in zip(round.clients, rows.columns(start, stop), strict=True):
                history.setdefault(client, torch.zeros(rows.length))[start:stop] += row
        weights = _distinct([history[client] for client in round.clients])
        return history, combined(rows, weights / max(float(weights.sum()), 1e-300))


@dataclass(frozen=True)
class SignGuard(Majority, ContextualRule):
    """Leave out norms far from the median, then those whose signs are unlike the most; clip the rest to the median norm.

    Source: Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient filtering" (2022).

    Attributes:
        low: Least norm / median norm.
        high: Greatest norm / median norm.
        share: Of the coordinates whose signs are looked at, in (0, 1].

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    low: float = 0.1
    high: float = 3.0
    share: float = 0.1

    def __post_init__(self) -> None:
        if not (0 <= self.low < 1 < self.high and 0 < self.share <= 1):
            raise AdmissionError("SignGuard needs low in [0, 1), high above 1 and share in (0, 1]; leave them out")

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The mean of those that are left."""
        from sklearn.cluster import MeanShift

        count = len(rows.weights)
        self.check(count)
        norms = geometry(rows).norms
        median = max(float(norms.median()), 1e-300)
        fitting = {row for row in range(count) if self.low <= float(norms[row]) / median <= self.high}
        values = _drawn(rows, max(1, round_half(self.share * rows.length)), round.rng)
        signs = torch.stack(
            [(values > 0).double().mean(1), (values == 0).double().mean(1), (values < 0).double().mean(1)]
        )
        labels = MeanShift(bandwidth=_bandwidth(signs.T)).fit(signs.T.numpy()).labels_.tolist()
        biggest = max(set(labels), key=lambda label: (labels.count(label), -label))
        kept = sorted(fitting & {row for row in range(count) if labels[row] == biggest}) or sorted(fitting)
        weights = torch.zeros(count, dtype=torch.float64)
        weights[kept] = (median / norms[kept].clamp(min=median)) / len(kept)
        return memory, combined(rows, weights)


@dataclass(frozen=True)
class FLAME(Majority):
    """Keep the largest group by angle, if it is more than half; clip it to the median norm.

    The noise that the paper adds against backdoors is `GaussianNoise`'s matter, with its privacy accounted.

    Source: Nguyen et al., "FLAME: taming backdoors in federated learning" (2022), algorithm 1.
    """

    def reduce(self, rows: Rows) -> Vector:
        """The mean of the group."""
        from sklearn.cluster import HDBSCAN

        count = len(rows.weights)
        self.check(count)
        found = geometry(rows)
        kept = list(range(count))
        if count > 2:
            apart = (1 - found.cosines).clamp(min=0.0).fill_diagonal_(0.0)
            grouping = HDBSCAN(
                min_cluster_size=count // 2 + 1,
                min_samples=1,
                allow_single_cluster=True,
                metric="precomputed",
                copy=True,
            )
            labels = grouping.fit(apart.numpy()).labels_.tolist()
            kept = [row for row in kept if labels[row] == 0] or kept
        norms = found.norms
        median = max(float(norms.median()), 1e-300)
        weights = torch.zeros(count, dtype=torch.float64)
        weights[kept] = (median / norms[kept].clamp(min=median)) / len(kept)
        return combined(rows, weights)


def round_half(number: float) -> int:
    """To the nearest whole number."""
    return math.floor(number + 0.5)


def _distinct(vectors: list[Vector]) -> torch.Tensor:
    """FoolsGold's weights: 0 for who is like another, 1 for who is like nobody; float64 `[n]`."""
    if len(vectors) == 1:
        return torch.ones(1, dtype=torch.float64)
    directions = torch.stack([vector.double() / max(float(vector.double().norm()), 1e-300) for vector in vectors])
    alike = (directions @ directions.T).fill_diagonal_(-1.0)
    greatest = alike.max(1).values
    # Pardoning: who is only like someone who is more like others still.
    ratio = greatest[:, None] / greatest[None, :]
    alike = torch.where((greatest[None, :] > greatest[:, None]) & (greatest[None, :] > 0), alike * ratio, alike)
    weights = (1 - alike.fill_diagonal_(-1.0).max(1).values).clamp(0.0, 1.0)
    weights = weights / max(float(weights.max()), 1e-300)
    weights = torch.where(weights >= 1.0, torch.full_like(weights, 0.99), weights)
    return (torch.log(weights.clamp(min=1e-300) / (1 - weights)) + 0.5).clamp(0.0, 1.0)


def _drawn(rows: Rows, columns: int, rng: torch.Generator) -> torch.Tensor:
    """So many columns of all rows, drawn by lot; float32 `[n, columns]`."""
    if columns >= rows.length:
        return block(rows, 0, rows.length)
    places = torch.randperm(rows.length, generator=rng)[:columns].sort().values
    parts = []
    for start in range(0, rows.length, COLUMNS):
        within = places[(places >= start) & (places < start + COLUMNS)] - start
        if len(within):
            parts.append(block(rows, start, min(start + COLUMNS, rows.length))[:, within])
    return torch.cat(parts, 1)


def _bandwidth(points: torch.Tensor) -> float:
    """What sklearn estimates, and never 0, which equal points would give."""
    from sklearn.cluster import estimate_bandwidth

    return max(float(estimate_bandwidth(points.numpy(), quantile=0.5)), 1e-6)
