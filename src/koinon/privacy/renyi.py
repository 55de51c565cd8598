"""Accounting by Rényi differential privacy: looser than privacy loss distributions, but it knows cohorts of fixed size."""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from koinon.core.errors import AdmissionError
from koinon.privacy.events import Event
from koinon.privacy.releases import Neighbours, Release, Tally, check, relative, settle, unprotected

if TYPE_CHECKING:
    from dp_accounting import DpEvent


def rdp(event: Event, delta: float, neighbours: Neighbours) -> float:
    """An epsilon that covers `event` at `delta`; infinite if something in it is unprotected.

    Source: Mironov (2017); for fixed sizes Wang, Balle, Kasiviswanathan (2019), Theorem 27, through dp-accounting.

    Raises:
        AdmissionError: if the event or `delta` makes no sense, or asks for what no bound in use covers: Poisson samples
            with Gaussian noise under replace-one, or cohorts of fixed size under add-remove.
    """
    from dp_accounting.rdp import RdpAccountant

    tally = settle(event)
    check(tally, delta, neighbours)
    if unprotected(tally):
        return math.inf
    if neighbours == "replace-one" and any(r.sampling == "poisson" and r.law == "gaussian" for r, _ in tally):
        raise AdmissionError(
            "RDP does not cover Poisson samples with Gaussian noise under replace-one; "
            "ask for neighbours='add-remove', or sample every release in the same way"
        )
    # dp-accounting's RDP takes noise relative to what the neighbours differ by, also under replace-one.
    return epsilon_at(relative(tally, neighbours), delta, tuple(RdpAccountant().orders.tolist()))


def epsilon_at(tally: Tally, delta: float, orders: Sequence[float]) -> float:
    """The best epsilon over `orders`, for noise relative to what the neighbours differ by."""
    from dp_accounting.rdp import compute_epsilon

    total = np.zeros(len(orders))
    for release, times in tally:
        total += times * _curve(release, tuple(orders))
    return float(compute_epsilon(orders, total, delta)[0])


def amplified(release: Release) -> float:
    """The pure epsilon of a sampled Laplace release, whichever way the units are sampled.

    log(1 + rate · (e^ε - 1)), for noise relative to what the neighbours differ by.

    Source: Balle, Barthe, Gaboardi, "Privacy amplification by subsampling" (2018), Theorems 8 and 9; for Poisson samples
    under replace-one it follows from Theorem 2 in the same way.
    """
    return float(np.logaddexp(math.log1p(-release.rate), math.log(release.rate) + 1 / release.noise_multiplier))


@functools.lru_cache(maxsize=256)
def _curve(release: Release, orders: tuple[float, ...]) -> np.ndarray:
    """Rényi divergence of one release at each order."""
    if release.law == "skellam":
        return _skellam(release, np.array(orders))
    whole = Release(release.law, release.noise_multiplier)
    if release.sampling == "none":
        return _composed(_event(whole), orders)
    if release.law == "laplace":
        pure = amplified(release)
        sampled = np.minimum(pure, pure**2 / 2 * np.array(orders))
    else:
        sampled = _composed(_event(release), orders)
    # The bound for fixed sizes can exceed that without sampling, which holds as well: the divergence is quasi-convex.
    curve: np.ndarray = np.minimum(sampled, _curve(whole, orders))
    return curve


def _skellam(release: Release, orders: np.ndarray) -> np.ndarray:
    """Of whole numbers that differ by a vector of L2 norm `steps`, at most √length times that in L1, or its square.

    The bound is for whole orders, and the divergence grows with the order: a fractional one is covered by the next.

    Source: Agarwal, Kairouz, Liu, "The Skellam mechanism for differentially private federated learning" (2021), theorem 3.5.
    """
    whole, l2 = np.ceil(orders), release.steps
    l1 = min(math.sqrt(release.length) * l2, l2**2)
    variance = (release.noise_multiplier * l2) ** 2
    beyond = np.minimum(((2 * whole - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    curve: np.ndarray = whole * l2**2 / (2 * variance) + beyond
    return curve


def _composed(event: "DpEvent", orders: tuple[float, ...]) -> np.ndarray:
    from dp_accounting import NeighboringRelation, SampledWithoutReplacementDpEvent
    from dp_accounting.rdp import RdpAccountant

    fixed = isinstance(event, SampledWithoutReplacementDpEvent)
    relation = NeighboringRelation.REPLACE_ONE if fixed else NeighboringRelation.ADD_OR_REMOVE_ONE
    curve: np.ndarray = RdpAccountant(orders, relation).compose(event).rdp
    return curve.clip(min=0)  # rounding can turn the least divergences negative


def _event(release: Release) -> "DpEvent":
    import dp_accounting

    if release.law == "laplace":
        return dp_accounting.LaplaceDpEvent(release.noise_multiplier)
    gaussian = dp_accounting.GaussianDpEvent(release.noise_multiplier)
    match release.sampling:
        case "none":
            return gaussian
        case "poisson":
            return dp_accounting.PoissonSampledDpEvent(release.rate, gaussian)
        case "fixed":
            count, population = release.rate.as_integer_ratio()  # only the ratio matters
            return dp_accounting.SampledWithoutReplacementDpEvent(population, count, gaussian)
