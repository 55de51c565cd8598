"""The missing number of a private training: noise, rounds or sampling rate, solved for."""

import bisect
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from koinon.core.errors import AdmissionError
from koinon.privacy.accountant import epsilon as epsilon_of
from koinon.privacy.accountant import planned
from koinon.privacy.budget import Budget
from koinon.privacy.events import Event
from koinon.privacy.gaussian import analytic_stddev
from koinon.privacy.releases import Neighbours, Sampling

_MOST_ROUNDS = 1_000_000
_TOLERANCE = 4e-4  # relative
_LEAST = 1e-100  # stands for an epsilon of 0, and its inverse for infinity, where a logarithm is taken


@dataclass(frozen=True, slots=True)
class Calibration:
    """A setting that spends a budget.

    Attributes:
        noise_multiplier: Standard deviation of the noise / largest L2 norm of one unit's contribution.
        rounds: How many releases.
        sample_rate: A unit's chance to take part in a round.
        epsilon: What they cost together, at most the target.
    """

    noise_multiplier: float
    rounds: int
    sample_rate: float
    epsilon: float


def calibrate(
    epsilon: float,
    delta: float,
    *,
    rounds: int | None = None,
    noise_multiplier: float | None = None,
    sample_rate: float | None = None,
    sampling: Sampling = "poisson",
    neighbours: Neighbours = "add-remove",
    population: int | None = None,
) -> Calibration:
    """Solve for the one of `rounds`, `noise_multiplier` and `sample_rate` that is None.

    Noise comes out as small, rounds and rate as large as the budget allows: rounds and a cohort of fixed size exactly,
    noise and a Poisson rate to 0.1 %. Without sampling the rate is 1. No Poisson rate below 10 · delta is considered: there
    it is delta itself that covers whoever is sampled.

    Args:
        epsilon: The target, > 0.
        delta: Of the guarantee, in (0, 1).
        rounds: How many releases, >= 1.
        noise_multiplier: Standard deviation of the noise / largest L2 norm of one unit's contribution, > 0.
        sample_rate: A unit's chance to take part in a round, in (0, 1].
        sampling: How units are sampled; "none" takes everyone.
        neighbours: Which populations must be hard to tell apart.
        population: How many units there are; needed for "fixed".

    Raises:
        AdmissionError: if none or several are None, or nothing reaches the target; names the cure.
    """
    budget = Budget(epsilon, delta, neighbours)
    if rounds is not None and rounds < 1:
        raise AdmissionError(f"{rounds} rounds release nothing; give at least 1")
    if sampling == "none" and sample_rate is None:
        sample_rate = 1.0
    cost = functools.partial(epsilon_of, delta=delta, sampling=sampling, neighbours=neighbours, population=population)
    if noise_multiplier is None and rounds is not None and sample_rate is not None:
        enough = analytic_stddev(epsilon, delta, 1 if neighbours == "add-remove" else 2) * math.sqrt(rounds)
        noise_multiplier = _noise(epsilon, enough, functools.partial(cost, rounds=rounds, sample_rate=sample_rate))
    elif noise_multiplier is not None and rounds is None and sample_rate is not None:
        rounds = _rounds(budget, planned(noise_multiplier, sample_rate, sampling, population))
    elif noise_multiplier is not None and rounds is not None and sample_rate is None:
        priced = functools.partial(cost, noise_multiplier=noise_multiplier, rounds=rounds)
        if priced(sample_rate=1.0) <= epsilon:
            sample_rate = 1.0
        else:
            sample_rate = _share(budget, population, priced) if sampling == "fixed" else _rate(budget, priced)
    else:
        raise AdmissionError(
            "leave out exactly one of rounds, noise_multiplier and sample_rate: it is solved for "
            "(without sampling, the rate is 1 and one of the other two is solved for)"
        )
    spent = cost(noise_multiplier=noise_multiplier, rounds=rounds, sample_rate=sample_rate)
    return Calibration(noise_multiplier, rounds, sample_rate, spent)


def _noise(target: float, enough: float, cost: Callable[..., float]) -> float:
    """The least noise, sought below `enough`, which suffices without sampling and so with it."""
    enough *= 1.01
    while cost(noise_multiplier=enough) > target:  # RDP finds the same noise a little dearer
        enough *= 1.5
    return _edge(target, enough, 1 / 2, lambda noise: cost(noise_multiplier=noise))


def _rounds(budget: Budget, event: Event) -> int:
    most = 64
    while (found := budget.rounds_within(event, most)) == most:
        if most == _MOST_ROUNDS:
            raise AdmissionError(f"the budget outlasts {_MOST_ROUNDS:,} rounds; give less noise or a smaller epsilon")
        most = min(8 * most, _MOST_ROUNDS)
    if found == 0:
        raise AdmissionError(
            f"a single round exceeds epsilon {budget.epsilon:g}; raise noise_multiplier, or sample fewer"
        )
    return found


def _rate(budget: Budget, cost: Callable[..., float]) -> float:
    """The largest Poisson rate, where 1 is too much."""
    least = min(10 * budget.delta, 0.5)
    if cost(sample_rate=least) > budget.epsilon:
        raise _hopeless(budget)
    return _edge(budget.epsilon, least, 8, lambda rate: cost(sample_rate=min(rate, 1.0)))


def _share(budget: Budget, population: int | None, cost: Callable[..., float]) -> float:
    """The largest cohort of fixed size, as a share of the population, where all of it is too much."""
    if population is None or population < 1:
        raise AdmissionError("sampling='fixed' needs the population; give population=")
    if cost(sample_rate=1 / population) > budget.epsilon:
        raise _hopeless(budget)
    more = range(2, population)
    count = 1 + bisect.bisect_right(more, budget.epsilon, key=lambda count: cost(sample_rate=count / population))
    return count / population


def _hopeless(budget: Budget) -> AdmissionError:
    return AdmissionError(
        f"no sampling rate stays within epsilon {budget.epsilon:g}; raise noise_multiplier or give fewer rounds"
    )


def _edge(target: float, within: float, factor: float, cost: Callable[[float], float]) -> float:
    """The last value that meets the target on the way from `within`, which does, by multiples of `factor`."""
    from scipy.optimize import brentq

    def excess(logarithm: float) -> float:
        return math.log(min(max(cost(math.exp(logarithm)), _LEAST), 1 / _LEAST) / target)

    inside, step = math.log(within), math.log(factor)
    while excess(inside + step) <= 0:
        inside += step
    edge = brentq(excess, inside, inside + step, xtol=_TOLERANCE)
    while excess(edge) > 0:
        edge -= math.copysign(_TOLERANCE, step)
    return math.exp(edge)
