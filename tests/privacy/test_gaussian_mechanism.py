"""The analytic Gaussian mechanism against the paper's formula in 80 digits."""

import math

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from koinon.core.errors import AdmissionError
from koinon.privacy.gaussian import analytic_delta, analytic_stddev

EPSILONS = st.floats(math.log(1e-3), math.log(100)).map(math.exp)
DELTAS = st.floats(math.log(1e-12), math.log(0.5)).map(math.exp)


def exact_delta(epsilon, stddev):
    with mpmath.workdps(80):
        epsilon, stddev = mpmath.mpf(epsilon), mpmath.mpf(stddev)
        here, there = 1 / (2 * stddev) - epsilon * stddev, -1 / (2 * stddev) - epsilon * stddev
        return float(mpmath.ncdf(here) - mpmath.exp(epsilon) * mpmath.ncdf(there))


@pytest.mark.parametrize(("epsilon", "delta", "stddev"), [
    (0.5, 1e-5, 7.03182668),
    (1, 1e-5, 3.73063163),
    (1, 1e-6, 4.22467889),
    (8, 1e-5, 0.60022907),
    (10, 1e-5, 0.49988862),
    (20, 1e-5, 0.29004142),
])  # fmt: skip
def test_published_figures(epsilon, delta, stddev):
    assert round(analytic_stddev(epsilon, delta), 8) == stddev


@pytest.mark.parametrize(("claimed", "true"), [(10, 10.394), (20, 25.443)])
def test_the_classic_formula_promises_too_much(claimed, true):
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / claimed
    assert round(brentq(lambda epsilon: analytic_delta(epsilon, classic) - 1e-5, 1, 100, xtol=1e-9), 3) == true


@given(EPSILONS, DELTAS)
def test_the_noise_gives_exactly_the_delta(epsilon, delta):
    stddev = analytic_stddev(epsilon, delta)
    assert exact_delta(epsilon, stddev) == pytest.approx(delta, rel=1e-6)
    assert analytic_delta(epsilon, stddev) == pytest.approx(delta, rel=1e-6)


@given(EPSILONS, st.floats(0.05, 1e4))
def test_delta_is_the_papers_formula(epsilon, stddev):
    assert analytic_delta(epsilon, stddev) == pytest.approx(exact_delta(epsilon, stddev), rel=1e-6, abs=1e-18)


@settings(max_examples=25)
@given(EPSILONS, DELTAS, st.floats(1e-3, 1e3))
def test_noise_is_in_proportion_to_sensitivity(epsilon, delta, sensitivity):
    stddev = analytic_stddev(epsilon, delta, sensitivity)
    assert stddev == pytest.approx(sensitivity * analytic_stddev(epsilon, delta))
    assert analytic_delta(epsilon, stddev, sensitivity) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("call", [
    lambda: analytic_stddev(0, 1e-5),
    lambda: analytic_stddev(math.inf, 1e-5),
    lambda: analytic_stddev(1, 0),
    lambda: analytic_stddev(1, 1),
    lambda: analytic_stddev(1, 1e-5, 0),
    lambda: analytic_delta(-1, 1),
    lambda: analytic_delta(1, 0),
    lambda: analytic_delta(1, 1, math.nan),
])  # fmt: skip
def test_senseless_arguments_are_refused(call):
    with pytest.raises(AdmissionError, match="but must"):
        call()
