"""Accounting by privacy loss distributions: tight, for everything but Gaussian noise on cohorts of fixed size."""

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from koinon.core.errors import AdmissionError
from koinon.privacy.events import Event
from koinon.privacy.releases import Neighbours, Release, Tally, check, relative, settle, unprotected
from koinon.privacy.renyi import amplified, epsilon_at

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

# Whole orders only: fractional ones are slow, and do not converge where there is little noise.
_ORDERS = (*range(2, 64), 128, 256, 512, 1024)
_TAIL = 2e-22  # the mass that dp-accounting cuts off a distribution
_INTERVAL = 1e-4
_WIDEST = 1e8  # of losses; e to the power of a grid's step overflows soon after
_FINEST = 1e-13  # delta: composing costs 1e-15 and more, and the Fourier transform is exact to some 1e-15


def pld(event: Event, delta: float, neighbours: Neighbours) -> float:
    """An epsilon that covers `event` at `delta`; infinite if something in it is unprotected.

    Exact for Gaussian noise without sampling, whose loss is itself Gaussian; else an upper bound on a grid.

    Source: Koskela et al. (2020), Doroshenko et al., "Connect the dots" (2022), through dp-accounting.

    Raises:
        AdmissionError: if the event or `delta` makes no sense, or asks for what is not covered: Gaussian noise on cohorts
            of fixed size, or a `delta` below 1e-13 where there is more than Gaussian noise without sampling.
    """
    tally = settle(event)
    check(tally, delta, neighbours)
    if unprotected(tally):
        return math.inf
    if any(release.sampling == "fixed" and release.law == "gaussian" for release, _ in tally):
        raise AdmissionError(
            "privacy loss distributions do not cover Gaussian noise on cohorts of fixed size; "
            "account for it by RDP, or sample by Poisson"
        )
    if any(release.law == "skellam" for release, _ in tally):
        raise AdmissionError("privacy loss distributions do not cover Skellam noise on vectors; account for it by RDP")
    if not tally:
        return 0.0
    match relative(tally, neighbours):
        case ((Release("gaussian", noise_multiplier, "none"), _),):
            return _exact(noise_multiplier, delta)
    if delta < _FINEST:
        raise AdmissionError(f"delta {delta} is finer than the accounting computes; ask for {_FINEST} or more")
    width = epsilon_at(relative(tally, neighbours), _TAIL, _ORDERS)
    if width > _WIDEST:
        return math.inf
    interval = _interval(width, sum(times for _, times in tally))
    return float(_composed(tally, neighbours, interval).get_epsilon_for_delta(delta))


def _exact(noise_multiplier: float, delta: float) -> float:
    from dp_accounting import get_epsilon_gaussian

    with np.errstate(divide="ignore"):  # the search starts where delta rounds to 0
        return float(get_epsilon_gaussian(noise_multiplier, delta))


def _composed(tally: Tally, neighbours: Neighbours, interval: float) -> "PrivacyLossDistribution":
    from dp_accounting.pld import privacy_loss_distribution

    total = privacy_loss_distribution.identity(interval)
    for release, times in tally:
        total = total.compose(_loss(release, neighbours, interval).self_compose(times))
    return total


def _interval(width: float, times: int) -> float:
    """The grid on which losses are rounded up: what it adds to epsilon is about `times` · interval².

    That stays below 1e-5 until the interval is 1e-4, the customary one. Wide losses get a coarser grid, so that it has at
    most some million points; small ones a finer grid. `width`, what the losses reach, is estimated by RDP; under
    replace-one for Poisson samples that is no bound, and need not be one. Times a power of two, so that few distributions
    are made.
    """
    accurate = min(max(math.sqrt(1e-5 / times), _INTERVAL), 1e-3) * min(max(width, 0.01), 1.0)
    return _INTERVAL * 2.0 ** math.floor(math.log2(max(accurate, width * 2e-6) / _INTERVAL))


@functools.lru_cache(maxsize=4)
def _loss(release: Release, neighbours: Neighbours, interval: float) -> "PrivacyLossDistribution":
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import common
    from dp_accounting.pld import privacy_loss_distribution as distributions

    replaced = neighbours == "replace-one"
    if release.law == "gaussian":
        # Given the relation, dp-accounting doubles the sensitivity by itself.
        relation = NeighboringRelation.REPLACE_ONE if replaced else NeighboringRelation.ADD_OR_REMOVE_ONE
        return distributions.from_gaussian_mechanism(
            release.noise_multiplier,
            value_discretization_interval=interval,
            sampling_prob=release.rate,
            neighboring_relation=relation,
        )
    ((halved, _),) = relative(((release, 1),), neighbours)
    if replaced and release.sampling != "none":  # dp-accounting has no such distribution: that of any pure epsilon
        pure = common.DifferentialPrivacyParameters(amplified(halved))
        return distributions.from_privacy_parameters(pure, interval)
    return distributions.from_laplace_mechanism(
        halved.noise_multiplier, value_discretization_interval=interval, sampling_prob=release.rate
    )
