"""The accounting of noise that clients add within a sum, against exact divergences."""

import math

import numpy as np
import pytest
from scipy import stats

from koinon.core.errors import AdmissionError, VerificationFailed
from koinon.privacy.accountant import spent
from koinon.privacy.events import Gaussian, PoissonSampled, Repeated, Skellam, Together
from koinon.privacy.events_json import from_json, to_json
from koinon.privacy.privacy_loss import pld
from koinon.privacy.releases import Release, relative, settle
from koinon.privacy.renyi import _curve


def exact(variance, shift, order):
    """The Rényi divergence of a Skellam from one that is moved by a whole number."""
    reach = int(40 + 20 * math.sqrt(variance) + shift)
    values = np.arange(-reach, reach + 1)
    here = stats.skellam.logpmf(values, variance / 2, variance / 2)
    there = stats.skellam.logpmf(values - shift, variance / 2, variance / 2)
    kept = np.isfinite(here) & np.isfinite(there)
    return float(np.logaddexp.reduce(order * here[kept] + (1 - order) * there[kept])) / (order - 1)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("multiplier", [0.7, 1.0, 3.3, 10.0])
def test_the_bound_covers_the_exact_divergence(multiplier, steps):
    orders = (2.0, 3.0, 8.0, 16.0)
    curve = _curve(Release("skellam", multiplier, steps=float(steps), length=1), orders)
    for order, bound in zip(orders, curve, strict=True):
        assert exact((multiplier * steps) ** 2, steps, order) <= bound + 1e-9


def test_fractional_orders_are_covered_by_the_next_whole_one():
    release = Release("skellam", 1.0, steps=4.0, length=9)
    assert _curve(release, (2.5,)) == _curve(release, (3.0,)) > _curve(release, (2.0,))


def test_fine_steps_cost_what_gaussian_noise_costs_by_the_same_accounting():
    fine = spent(Repeated(Skellam(3.3, 1e6, 1000), 30), 1e-5, "add-remove", "client")
    tight = spent(Repeated(Gaussian(3.3), 30), 1e-5, "add-remove", "client")
    assert fine.accountant == "RDP"
    assert tight.epsilon < fine.epsilon < 1.1 * tight.epsilon
    coarse = spent(Repeated(Skellam(3.3, 2.0, 1000), 30), 1e-5, "add-remove", "client")
    assert coarse.epsilon > fine.epsilon


def test_a_replaced_client_moves_the_sum_twice_as_far():
    ((release, _),) = relative(settle(Skellam(2.0, 50.0, 7)), "replace-one")
    assert (release.noise_multiplier, release.steps, release.length) == (1.0, 100.0, 7)
    one = spent(Skellam(2.0, 50.0, 7), 1e-5, "add-remove", "client").epsilon
    assert spent(Skellam(2.0, 50.0, 7), 1e-5, "replace-one", "client").epsilon > 1.9 * one


def test_it_adds_up_with_other_releases():
    both = spent(Together((Skellam(3.0, 1e5, 10), Gaussian(3.0))), 1e-5, "add-remove", "client")
    twice = spent(Repeated(Gaussian(3.0), 2), 1e-5, "add-remove", "client")
    assert twice.epsilon < both.epsilon < 1.15 * twice.epsilon


def test_what_is_not_covered_is_refused():
    with pytest.raises(AdmissionError, match="on samples"):
        settle(PoissonSampled(0.1, Skellam(1.0, 100.0, 10)))
    with pytest.raises(AdmissionError, match="by RDP"):
        pld(Skellam(1.0, 100.0, 10), 1e-5, "add-remove")
    for steps, length in ((0.5, 10), (math.inf, 10), (math.nan, 10), (100.0, 0)):
        with pytest.raises(AdmissionError, match="finer steps"):
            settle(Skellam(1.0, steps, length))
    assert math.isinf(spent(Skellam(1e-3, 100.0, 10), 1e-5, "add-remove", "client").epsilon)


def test_the_ledger_has_it_to_the_bit():
    event = Skellam(3.3, 8 * math.sqrt(1001), 1001)
    assert from_json(to_json(event)) == event
    with pytest.raises(VerificationFailed):
        from_json({**to_json(event), "steps": 0.1})
