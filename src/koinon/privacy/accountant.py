"""What noisy releases amount to: events -> (epsilon, delta), by dp-accounting."""

import functools
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from koinon.core.errors import AdmissionError
from koinon.privacy.events import Event, FixedSampled, Gaussian, PoissonSampled, Repeated
from koinon.privacy.privacy_loss import pld
from koinon.privacy.releases import Neighbours, Sampling, Tally, settle
from koinon.privacy.renyi import rdp

Unit: TypeAlias = Literal["client", "record"]
"""Whose presence is hidden: everything that a client holds, or one record of it."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What an owner is promised; a number without the rest means nothing.

    Attributes:
        epsilon: Infinite when nothing bounds it.
        delta: The chance that `epsilon` does not hold.
        unit: Whose presence is hidden.
        neighbours: Which populations are hard to tell apart.
        sampling: What the analysis relied on: "poisson", "fixed", "none", or "mixed" if both kinds of sampling occur.
        accountant: "PLD" or "RDP".
    """

    epsilon: float
    delta: float
    unit: Unit
    neighbours: Neighbours
    sampling: str
    accountant: str

    def __str__(self) -> str:
        # Rounded up: a promise must not look better than it is.
        epsilon = f"{math.ceil(self.epsilon * 1e4) / 1e4}" if math.isfinite(self.epsilon) else "unbounded"
        return (
            f"epsilon {epsilon} at delta {self.delta:g} per {self.unit} "
            f"({self.neighbours} neighbours, {_SAMPLED[self.sampling]}, {self.accountant} accounting)"
        )


_SAMPLED = {
    "poisson": "Poisson sampling",
    "fixed": "fixed-size sampling",
    "none": "no sampling",
    "mixed": "mixed sampling",
}


def spent(event: Event, delta: float, neighbours: Neighbours, unit: Unit) -> Guarantee:
    """What `event` costs; by privacy loss distributions, or by RDP where those do not apply.

    Args:
        event: Everything that was released, composed.
        delta: Of the guarantee, in (0, 1).
        neighbours: Which populations must be hard to tell apart.
        unit: Whom the event's noise was measured against; it changes no number.

    Raises:
        AdmissionError: if a number is out of its range, or nothing supports an epsilon; names the cure.
    """
    cost, sampling, accountant = _cost(event, delta, neighbours)
    return Guarantee(cost, delta, unit, neighbours, sampling, accountant)


def epsilon(
    *,
    noise_multiplier: float,
    rounds: int,
    delta: float,
    sample_rate: float = 1.0,
    sampling: Sampling = "poisson",
    neighbours: Neighbours = "add-remove",
    population: int | None = None,
) -> float:
    """The cost of so many rounds of sums with Gaussian noise.

    Args:
        noise_multiplier: Standard deviation of the noise / largest L2 norm of one unit's contribution, > 0.
        rounds: How many releases, >= 0.
        delta: Of the guarantee, in (0, 1).
        sample_rate: A unit's chance to take part in a round, in (0, 1].
        sampling: How units are sampled; "none" takes everyone.
        neighbours: Which populations must be hard to tell apart.
        population: How many units there are; needed for "fixed".

    Raises:
        AdmissionError: if a number is out of its range, or nothing supports an epsilon; names the cure.
    """
    event = Repeated(planned(noise_multiplier, sample_rate, sampling, population), rounds)
    return _cost(event, delta, neighbours)[0]


def planned(noise_multiplier: float, sample_rate: float, sampling: Sampling, population: int | None) -> Event:
    """One round with Gaussian noise, as an event; arguments as in `epsilon`.

    Raises:
        AdmissionError: if they contradict each other.
    """
    if not 0 < sample_rate <= 1:
        raise AdmissionError(f"a sampling rate of {sample_rate} is not in (0, 1]; cohort / population is usual")
    noise = Gaussian(noise_multiplier)
    match sampling:
        case "poisson":
            return PoissonSampled(sample_rate, noise)
        case "none":
            if sample_rate != 1:
                raise AdmissionError(f"without sampling the rate is 1, not {sample_rate}; say how units are sampled")
            return noise
        case "fixed":
            if sample_rate == 1:
                return noise
            if population is None:
                raise AdmissionError("sampling='fixed' needs the population; give population=")
            return FixedSampled(round(sample_rate * population), population, noise)
        case _:
            raise AdmissionError(f"{sampling!r} is no way to sample; choose 'poisson', 'fixed' or 'none'")


@functools.lru_cache(maxsize=1024)
def _cost(event: Event, delta: float, neighbours: Neighbours) -> tuple[float, str, str]:
    """(epsilon, sampling, accountant)."""
    tally = settle(event)
    fixed = any(release.sampling == "fixed" and release.law == "gaussian" for release, _ in tally)
    if fixed or any(release.law == "skellam" for release, _ in tally):
        return rdp(event, delta, neighbours), _sampling(tally), "RDP"
    return pld(event, delta, neighbours), _sampling(tally), "PLD"


def _sampling(tally: Tally) -> str:
    kinds = {release.sampling for release, _ in tally} - {"none"}
    if len(kinds) > 1:
        return "mixed"
    return next(iter(kinds), "none")
