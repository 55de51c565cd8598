"""A budget is never exceeded and never left unused; a calibration spends it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import AdmissionError
from koinon.privacy.accountant import epsilon, spent
from koinon.privacy.admission import fault_of_delta
from koinon.privacy.budget import Budget
from koinon.privacy.calibrate import calibrate
from koinon.privacy.events import FixedSampled, Gaussian, PoissonSampled, Repeated, Together, Unprotected
from koinon.privacy.gaussian import analytic_stddev

REPLACED = {"neighbours": "replace-one"}
FIXED = {"sampling": "fixed", "population": 16, **REPLACED}


@settings(max_examples=15)
@given(
    st.floats(0.1, 20),
    st.floats(1, 50),
    st.integers(0, 400),
    st.floats(5, 100),
    st.sampled_from(["add-remove", "replace-one"]),
)
def test_rounds_within_is_the_last_that_fits(most_epsilon, noise_multiplier, most, before, neighbours):
    budget = Budget(most_epsilon, 1e-6, neighbours)
    event, already = Gaussian(noise_multiplier), Gaussian(before)
    rounds = budget.rounds_within(event, most, already)
    assert 0 <= rounds <= most
    if rounds:
        assert budget.allows(Together((already, Repeated(event, rounds))))
    if rounds < most:
        assert not budget.allows(Together((already, Repeated(event, rounds + 1))))
    assert rounds <= budget.rounds_within(event, most)


@pytest.mark.parametrize(("event", "neighbours"), [
    (PoissonSampled(0.05, Gaussian(3.0)), "add-remove"),
    (FixedSampled(10, 100, Gaussian(8.0)), "replace-one"),
])  # fmt: skip
def test_rounds_within_holds_for_samples(event, neighbours):
    budget = Budget(1.0, 1e-5, neighbours)
    rounds = budget.rounds_within(event, 1000)
    assert 0 < rounds < 1000
    costs = [spent(Repeated(event, n), 1e-5, neighbours, "client").epsilon for n in (rounds, rounds + 1)]
    assert costs[0] <= 1.0 < costs[1]


def test_a_budget_allows_what_it_covers():
    budget = Budget(1.0, 1e-5)
    assert budget.allows(Gaussian(3.731))
    assert not budget.allows(Gaussian(3.730))
    assert not Budget(1.0, 1e-5, "replace-one").allows(Gaussian(3.731))
    assert not budget.allows(Unprotected("weights"))
    assert budget.rounds_within(Unprotected("weights"), 5) == 0
    assert budget.rounds_within(Gaussian(100.0), 5, already=Gaussian(1.0)) == 0


@pytest.mark.parametrize(
    "arguments", [(0, 1e-5), (-1, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1), (1, 1e-5, "x")]
)
def test_a_senseless_budget_is_refused(arguments):
    with pytest.raises(AdmissionError):
        Budget(*arguments)


def test_delta_must_be_less_than_one_unit():
    assert fault_of_delta(1e-4, 9_999) is None
    assert "less than 0.0001" in fault_of_delta(1e-4, 10_000)
    assert "10 units" in fault_of_delta(0.5, 10)


def cost(found, delta, arguments):
    return epsilon(
        noise_multiplier=found.noise_multiplier,
        rounds=found.rounds,
        sample_rate=found.sample_rate,
        delta=delta,
        **arguments,
    )


@pytest.mark.parametrize(("target", "rounds", "rate", "arguments"), [
    (0.5, 50, 0.05, {}),
    (1.0, 50, 0.05, REPLACED),
    (2.0, 50, 0.1, FIXED),
    (0.3, 400, 1.0, {"sampling": "none"}),
])  # fmt: skip
def test_the_noise_is_the_least_that_suffices(target, rounds, rate, arguments):
    found = calibrate(target, 1e-5, rounds=rounds, sample_rate=rate, **arguments)
    assert cost(found, 1e-5, arguments) == found.epsilon <= target
    less = epsilon(
        noise_multiplier=found.noise_multiplier / 1.001, rounds=rounds, sample_rate=rate, delta=1e-5, **arguments
    )
    assert less > target
    assert (found.rounds, found.sample_rate) == (rounds, rate)


@given(st.floats(0.01, 50), st.integers(1, 1000), st.sampled_from(["add-remove", "replace-one"]))
@settings(max_examples=15)
def test_without_sampling_the_noise_is_the_analytic_one(target, rounds, neighbours):
    found = calibrate(target, 1e-6, rounds=rounds, sampling="none", neighbours=neighbours)
    assert found.epsilon <= target
    moved = 1 if neighbours == "add-remove" else 2
    assert found.noise_multiplier == pytest.approx(analytic_stddev(target, 1e-6, moved) * math.sqrt(rounds), rel=1e-3)
    assert found.sample_rate == 1


@pytest.mark.parametrize(("noise_multiplier", "rate", "arguments"), [
    (2.0, 0.1, {}),
    (8.0, 0.1, FIXED),
    (30.0, None, {"sampling": "none"}),
])  # fmt: skip
def test_the_next_round_would_exceed_the_target(noise_multiplier, rate, arguments):
    found = calibrate(1.0, 1e-5, noise_multiplier=noise_multiplier, sample_rate=rate, **arguments)
    assert cost(found, 1e-5, arguments) == found.epsilon <= 1.0
    more = epsilon(
        noise_multiplier=noise_multiplier,
        rounds=found.rounds + 1,
        sample_rate=found.sample_rate,
        delta=1e-5,
        **arguments,
    )
    assert more > 1.0


@pytest.mark.parametrize(("arguments", "next_rate"), [
    ({}, lambda rate: rate * 1.001),
    (FIXED, lambda rate: rate + 1 / 16),
])  # fmt: skip
def test_the_sampling_rate_is_the_largest_that_fits(arguments, next_rate):
    found = calibrate(1.0, 1e-5, noise_multiplier=12.0, rounds=100, **arguments)
    assert cost(found, 1e-5, arguments) == found.epsilon <= 1.0
    more = epsilon(noise_multiplier=12.0, rounds=100, sample_rate=next_rate(found.sample_rate), delta=1e-5, **arguments)
    assert more > 1.0


def test_everyone_takes_part_if_the_budget_allows():
    assert calibrate(5.0, 1e-5, noise_multiplier=100.0, rounds=10).sample_rate == 1
    assert calibrate(5.0, 1e-5, noise_multiplier=100.0, rounds=10, **FIXED).sample_rate == 1


@pytest.mark.parametrize(("arguments", "cure"), [
    ({}, "leave out exactly one"),
    ({"rounds": 10}, "leave out exactly one"),
    ({"rounds": 10, "noise_multiplier": 1.0, "sample_rate": 0.1}, "leave out exactly one"),
    ({"rounds": 10, "noise_multiplier": 1.0, "sampling": "none"}, "leave out exactly one"),
    ({"rounds": 10, "noise_multiplier": 1.0, "sampling": "shuffled"}, "choose 'poisson', 'fixed' or 'none'"),
    ({"rounds": 0, "sample_rate": 0.1}, "give at least 1"),
    ({"rounds": 10, "sample_rate": 1.5}, "cohort / population is usual"),
    ({"noise_multiplier": 0.5, "sample_rate": 1.0}, "raise noise_multiplier"),
    ({"noise_multiplier": 1e6, "sample_rate": 1.0}, "less noise or a smaller epsilon"),
    ({"noise_multiplier": 0.3, "rounds": 10}, "raise noise_multiplier or give fewer rounds"),
    ({"noise_multiplier": 0.5, "rounds": 10, **FIXED}, "raise noise_multiplier or give fewer rounds"),
    ({"noise_multiplier": 1.0, "rounds": 10, "sampling": "fixed", **REPLACED}, "give population="),
    ({"noise_multiplier": 1.0, "rounds": 10, "sampling": "fixed", "population": 0, **REPLACED}, "give population="),
    ({"rounds": 10, "sample_rate": 0.1, "sampling": "fixed", "population": 16}, "ask for neighbours='replace-one'"),
])  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(arguments, cure):
    with pytest.raises(AdmissionError, match=cure):
        calibrate(1.0, 1e-5, **arguments)
