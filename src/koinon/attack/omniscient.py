"""Lies that hide among the honest updates, which the liars know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch

from koinon.attack.attack import Attack, Known, lengths


@dataclass(frozen=True)
class ALIE(Attack):
    """A little is enough: the honest mean, moved in every coordinate by as much as a majority could be.

    Source: Baruch, Baruch, Goldberg, "A little is enough: circumventing defenses for distributed learning" (2019),
    algorithm 3.

    Attributes:
        deviations: How many standard deviations; None: as many as the paper's formula gives.
    """

    deviations: float | None = None

    def lies(self, known: Known) -> torch.Tensor:
        """The same from each."""
        mean, deviation = known.honest.mean(0), known.honest.std(0, correction=0)
        moved = self.deviations if self.deviations is not None else self._most(len(known.honest), known.liars)
        return (mean - moved * deviation).expand_as(known.own).clone()

    @staticmethod
    def _most(honest: int, liars: int) -> float:
        """z at which enough honest updates are farther out for the lies to be among the majority."""
        everyone = honest + liars
        supporters = everyone // 2 + 1 - liars
        share = (honest - supporters) / honest
        return NormalDist().inv_cdf(min(max(share, 0.5), 1 - 1e-6))


@dataclass(frozen=True)
class IPM(Attack):
    """Inner product manipulation: the honest mean, backwards, and short enough not to stand out.

    Source: Xie, Koyejo, Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation" (2020).

    Attributes:
        scale: Of the honest mean.
    """

    scale: float = 0.5

    def lies(self, known: Known) -> torch.Tensor:
        """The same from each."""
        return (-self.scale * known.honest.mean(0)).expand_as(known.own).clone()


@dataclass(frozen=True)
class MinMax(Attack):
    """As far from the honest mean as keeps the greatest distance to an honest update within that of any two of them.

    Source: Shejwalkar and Houmansadr, "Manipulating the Byzantine" (2021), §IV-C, with the direction against the standard
    deviations.
    """

    def lies(self, known: Known) -> torch.Tensor:
        """The same from each."""
        return _farthest(known, lambda squared: squared.max(-1).values)


@dataclass(frozen=True)
class MinSum(Attack):
    """As far from the honest mean as keeps the sum of squared distances within that of any honest update.

    Source: Shejwalkar and Houmansadr (2021), §IV-C.
    """

    def lies(self, known: Known) -> torch.Tensor:
        """The same from each."""
        return _farthest(known, lambda squared: squared.sum(-1))


@dataclass(frozen=True)
class Mimic(Attack):
    """All liars send what one honest client sends: the one that lies farthest along the direction in which all vary most.

    Source: Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing" (2022), §3.2; the
    direction is that of the round, and not an average over the first rounds.
    """

    def lies(self, known: Known) -> torch.Tensor:
        """A copy."""
        centred = known.honest - known.honest.mean(0)
        direction = torch.linalg.eigh((centred @ centred.T).double()).eigenvectors[:, -1]
        return known.honest[int(direction.abs().argmax())].expand_as(known.own).clone()


@dataclass(frozen=True)
class LineSearch(Attack):
    """Of an attack's lies, moved nearer or farther, those that move the server's rule farthest from the honest mean.

    `LineSearch(ALIE())` and `LineSearch(IPM())` are the optimal ALIE and IPM of the robustness benchmarks.

    Source: Shejwalkar and Houmansadr (2021), algorithm 1; Allouah et al. (2023), appendix.

    Attributes:
        attack: Where the direction comes from.
        factors: By which the lies' distance from the honest mean is multiplied.
    """

    attack: Attack
    factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

    def lies(self, known: Known) -> torch.Tensor:
        """The worst of them."""
        mean, lies = known.honest.mean(0), self.attack.lies(known)
        tried = [mean + factor * (lies - mean) for factor in self.factors]
        return max(tried, key=lambda each: _harm(known, mean, each))


@dataclass(frozen=True)
class Adaptive(Attack):
    """Liars that know the rule, and what would give them away: the worst that several attacks can do, and no farther.

    Source: Shejwalkar and Houmansadr (2021), §IV-B, for the search against a known rule.

    Attributes:
        attacks: Directions to try.
        most: The lies' largest distance from the honest mean / the largest of an honest update: what a detector would
            let pass. Infinite: nothing is feared.
    """

    attacks: Sequence[Attack] = (ALIE(), IPM(), MinMax())
    most: float = 1.0

    def lies(self, known: Known) -> torch.Tensor:
        """The worst of all, cut to that distance."""
        mean = known.honest.mean(0)
        reach = self.most * float(lengths(known.honest - mean).max())
        tried = [mean + _cut(LineSearch(attack).lies(known) - mean, reach) for attack in self.attacks]
        return max(tried, key=lambda each: _harm(known, mean, each))


def _harm(known: Known, mean: torch.Tensor, lies: torch.Tensor) -> float:
    return float((known.rule(torch.cat((known.honest, lies))) - mean).norm())


def _cut(moved: torch.Tensor, reach: float) -> torch.Tensor:
    return moved * (reach / lengths(moved)).clamp(max=1.0)


def _farthest(known: Known, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Mean - γ · std with the largest γ at which the lie measures no more than the worst of the honest."""
    honest = known.honest.double()
    mean, direction = honest.mean(0), -honest.std(0, correction=0)
    direction = direction / direction.norm().clamp(min=1e-30)
    squares = (honest[:, None] - honest).square().sum(-1) if len(honest) <= 8 else torch.cdist(honest, honest).square()
    allowed = float(measure(squares).max())
    away = (honest - mean).square().sum(1)
    along = (honest - mean) @ direction

    def measured(gamma: float) -> float:
        return float(measure(away - 2 * gamma * along + gamma**2))

    low, high = 0.0, 1.0
    while measured(high) <= allowed and high < 1e12:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if measured(middle) <= allowed else (low, middle)
    lie: torch.Tensor = (mean + low * direction).float()
    return lie.expand_as(known.own).clone()
