"""What releases cost: published figures, laws, and the accountants' traps."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting import pld as reference_pld
from dp_accounting import rdp as reference_rdp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koinon.core.errors import AdmissionError
from koinon.privacy.accountant import epsilon, spent
from koinon.privacy.events import FixedSampled, Gaussian, Laplace, PoissonSampled, Repeated, Together, Unprotected
from koinon.privacy.gaussian import analytic_delta
from koinon.privacy.privacy_loss import pld
from koinon.privacy.releases import settle
from koinon.privacy.renyi import rdp

GRID = 2e-3  # what rounding losses up to a grid may add to an epsilon, relative or absolute

RELEASES = [
    (Repeated(PoissonSampled(0.01, Gaussian(1.1)), 1000), 1e-5, 1.7118, 1.5154, 2.4778),
    (Repeated(PoissonSampled(0.1, Gaussian(1.0)), 100), 1e-3, 5.6551, 4.7844, 7.7695),
    (Repeated(PoissonSampled(256 / 60000, Gaussian(1.1)), 14062), 1e-5, 2.5966, 2.3817, 4.2214),
    (Repeated(Gaussian(10.0), 100), 1e-5, 4.7285, 4.3772, 9.9973),
    (Repeated(Gaussian(4.0), 30), 1e-5, 6.8133, 6.3257, 14.8299),
]

NOISE = st.floats(2.0, 8.0)
RATES = st.floats(0.02, 0.3)
ROUNDS = st.integers(0, 200)
NEIGHBOURS = st.sampled_from(["add-remove", "replace-one"])
POISSON = st.builds(PoissonSampled, RATES, NOISE.map(Gaussian))
FIXED = st.builds(FixedSampled, st.integers(1, 50), st.just(50), st.just(Gaussian(4.0)))
UNSAMPLED = st.one_of(NOISE.map(Gaussian), NOISE.map(Laplace))
few = settings(max_examples=4)


@pytest.mark.parametrize(("event", "delta", "by_rdp", "by_pld", "replaced"), RELEASES)
def test_published_figures(event, delta, by_rdp, by_pld, replaced):
    assert round(rdp(event, delta, "add-remove"), 4) == by_rdp
    assert round(spent(event, delta, "add-remove", "client").epsilon, 4) == by_pld
    assert round(spent(event, delta, "replace-one", "client").epsilon, 4) == replaced


def test_a_cohort_of_fixed_size_costs_what_the_reference_says_of_half_the_noise():
    guarantee = spent(Repeated(FixedSampled(10, 1000, Gaussian(3.0)), 500), 1e-5, "replace-one", "record")
    event = dp_accounting.SampledWithoutReplacementDpEvent(1000, 10, dp_accounting.GaussianDpEvent(1.5))
    accountant = reference_rdp.RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    assert guarantee.epsilon == pytest.approx(accountant.compose(event, 500).get_epsilon(1e-5), rel=1e-9)
    assert (guarantee.accountant, guarantee.sampling) == ("RDP", "fixed")


@pytest.mark.parametrize(
    ("noise_multiplier", "rounds", "delta"), [(10.0, 100, 1e-5), (4.0, 1, 1e-6), (50.0, 3000, 1e-3)]
)
def test_rdp_under_replace_one_is_the_direct_formula(noise_multiplier, rounds, delta):
    orders = np.array(reference_rdp.RdpAccountant().orders)
    divergence = rounds * orders * (2 / noise_multiplier) ** 2 / 2
    converted = divergence + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    event = Repeated(Gaussian(noise_multiplier), rounds)
    assert rdp(event, delta, "replace-one") == pytest.approx(converted.min(), rel=1e-9)


@pytest.mark.parametrize("neighbours", ["add-remove", "replace-one"])
def test_the_exact_cost_without_sampling_is_the_reference_accountants(neighbours):
    relation = {"add-remove": NeighboringRelation.ADD_OR_REMOVE_ONE, "replace-one": NeighboringRelation.REPLACE_ONE}
    accountant = reference_pld.PLDAccountant(relation[neighbours])
    accountant.compose(dp_accounting.GaussianDpEvent(9.0), 40).compose(dp_accounting.GaussianDpEvent(6.0), 3)
    event = Together((Repeated(Gaussian(9.0), 40), Repeated(Gaussian(6.0), 3)))
    assert pld(event, 1e-6, neighbours) == pytest.approx(accountant.get_epsilon(1e-6), abs=1e-3)


@given(st.floats(0.1, 1e4), st.integers(1, 500), st.floats(1e-12, 0.1))
def test_without_sampling_many_releases_are_one_with_less_noise(noise_multiplier, rounds, delta):
    cost = epsilon(noise_multiplier=noise_multiplier, rounds=rounds, delta=delta, sampling="none")
    if cost > 0:
        assert analytic_delta(cost, noise_multiplier / math.sqrt(rounds)) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("account", [pld, rdp])
@pytest.mark.parametrize(("neighbours", "moved"), [("add-remove", 1), ("replace-one", 2)])
def test_laplace_noise_is_pure(account, neighbours, moved):
    assert account(Laplace(4.0), 1e-12, neighbours) == pytest.approx(moved / 4, abs=0.03)
    amplified = math.log1p(0.2 * math.expm1(moved / 4))
    assert account(PoissonSampled(0.2, Laplace(4.0)), 1e-12, neighbours) == pytest.approx(amplified, abs=0.03)
    assert account(PoissonSampled(0.2, Laplace(4.0)), 1e-12, neighbours) >= amplified * (1 - 1e-9)


def test_laplace_noise_of_a_fixed_cohort_is_amplified():
    event = FixedSampled(20, 100, Laplace(4.0))
    assert spent(event, 1e-12, "replace-one", "client").epsilon == pytest.approx(
        math.log1p(0.2 * math.expm1(0.5)), 1e-3
    )


@few
@given(POISSON, NEIGHBOURS, ROUNDS, ROUNDS)
def test_more_rounds_never_cost_less(event, neighbours, one, other):
    fewer, more = sorted((one, other))
    cost = pld(Repeated(event, more), 1e-6, neighbours)
    assert pld(Repeated(event, fewer), 1e-6, neighbours) <= cost * (1 + GRID)


@few
@given(NOISE, NOISE, RATES, NEIGHBOURS)
def test_more_noise_never_costs_more(one, other, rate, neighbours):
    less, more = (Repeated(PoissonSampled(rate, Gaussian(noise)), 50) for noise in sorted((one, other)))
    assert pld(more, 1e-6, neighbours) <= pld(less, 1e-6, neighbours) * (1 + GRID) + GRID


@few
@given(st.one_of(POISSON, UNSAMPLED, st.builds(PoissonSampled, RATES, NOISE.map(Laplace))), ROUNDS)
def test_replacing_costs_at_least_as_much_as_removing(event, rounds):
    event = Repeated(event, rounds)
    assert pld(event, 1e-6, "replace-one") >= pld(event, 1e-6, "add-remove") * (1 - GRID)


@few
@given(POISSON, NEIGHBOURS, st.integers(1, 100))
def test_poisson_sampling_never_hurts(event, neighbours, rounds):
    sampled = spent(Repeated(event, rounds), 1e-6, neighbours, "client").epsilon
    assert sampled <= spent(Repeated(event.event, rounds), 1e-6, neighbours, "client").epsilon * (1 + GRID)


@few
@given(FIXED, st.integers(1, 100))
@example(FixedSampled(45, 50, Gaussian(5.0)), 1)
def test_sampling_a_fixed_number_never_hurts(event, rounds):
    sampled = rdp(Repeated(event, rounds), 1e-6, "replace-one")
    assert sampled <= rdp(Repeated(event.event, rounds), 1e-6, "replace-one") * (1 + 1e-9)


@given(st.lists(st.one_of(UNSAMPLED, POISSON, FIXED), max_size=5), st.randoms())
def test_the_order_of_events_changes_no_bit(events, random):
    shuffled = random.sample(events, len(events))
    assert settle(Together(tuple(shuffled))) == settle(Together(tuple(events)))


@few
@given(st.lists(st.one_of(UNSAMPLED, POISSON), min_size=1, max_size=3), st.randoms(), NEIGHBOURS)
def test_together_commutes_and_is_flat(events, random, neighbours):
    shuffled = random.sample(events, len(events))
    cost = pld(Together(tuple(events)), 1e-6, neighbours)
    assert pld(Together(tuple(shuffled)), 1e-6, neighbours) == cost
    assert (
        pld(Together((Together(tuple(shuffled[:1])), Repeated(Together(tuple(shuffled[1:])), 1))), 1e-6, neighbours)
        == cost
    )


@few
@given(st.lists(st.one_of(UNSAMPLED, POISSON), min_size=1, max_size=2), st.integers(1, 50))
def test_privacy_loss_distributions_are_tighter_than_rdp(events, rounds):
    event = Repeated(Together(tuple(events)), rounds)
    assert pld(event, 1e-6, "add-remove") <= rdp(event, 1e-6, "add-remove") * (1 + GRID) + GRID


def test_the_whole_tree_is_composed():
    round = Together((PoissonSampled(0.1, Gaussian(3.0)), Gaussian(20.0)))
    nested = Repeated(Together((Repeated(round, 5), Repeated(Laplace(30.0), 2))), 4)
    flat = Together(
        (Repeated(PoissonSampled(0.1, Gaussian(3.0)), 20), Gaussian(20 / math.sqrt(20)), Repeated(Laplace(30.0), 8))
    )
    for account in (pld, rdp):
        assert account(nested, 1e-6, "add-remove") == pytest.approx(account(flat, 1e-6, "add-remove"), rel=1e-9)


def test_one_sample_may_serve_several_gaussian_releases():
    shared = PoissonSampled(0.1, Together((Gaussian(3.0), Gaussian(4.0))))
    assert pld(shared, 1e-6, "add-remove") == pytest.approx(pld(PoissonSampled(0.1, Gaussian(2.4)), 1e-6, "add-remove"))
    with pytest.raises(AdmissionError, match="a sample of its own for each"):
        pld(PoissonSampled(0.1, Together((Gaussian(3.0), Laplace(4.0)))), 1e-6, "add-remove")
    with pytest.raises(AdmissionError, match="a sample of its own for each"):
        pld(PoissonSampled(0.1, PoissonSampled(0.1, Gaussian(3.0))), 1e-6, "add-remove")


@pytest.mark.parametrize("neighbours", ["add-remove", "replace-one"])
def test_sampling_everyone_is_no_sampling(neighbours):
    cost = pld(Gaussian(3.0), 1e-6, neighbours)
    assert pld(PoissonSampled(1, Gaussian(3.0)), 1e-6, neighbours) == cost
    assert pld(FixedSampled(7, 7, Gaussian(3.0)), 1e-6, neighbours) == cost
    assert epsilon(noise_multiplier=3.0, rounds=1, delta=1e-6, sampling="fixed", neighbours=neighbours) == cost


def test_nothing_bounds_the_unprotected():
    parts = (Gaussian(100.0), PoissonSampled(0.01, Together((Unprotected("the mean loss"), Gaussian(1.0)))))
    for neighbours in ("add-remove", "replace-one"):
        assert spent(Together(parts), 1e-6, neighbours, "client").epsilon == math.inf
    assert rdp(Together(parts), 1e-6, "add-remove") == math.inf
    assert spent(Gaussian(1e-9), 1e-6, "add-remove", "client").epsilon == math.inf
    assert spent(Repeated(PoissonSampled(0.5, Gaussian(0.1)), 10**9), 1e-6, "replace-one", "client").epsilon == math.inf


def test_what_does_not_happen_is_free():
    nothing = [Repeated(Unprotected("x"), 0), Repeated(PoissonSampled(0.1, Gaussian(1.0)), 0), Together(())]
    for event in [*nothing, PoissonSampled(0.1, Together(()))]:
        assert spent(event, 1e-6, "add-remove", "client").epsilon == rdp(event, 1e-6, "add-remove") == 0


def test_a_guarantee_says_what_it_means():
    event = Repeated(PoissonSampled(0.01, Gaussian(1.1)), 1000)
    guarantee = spent(event, 1e-5, "replace-one", "record")
    assert str(guarantee) == (
        "epsilon 2.4779 at delta 1e-05 per record (replace-one neighbours, Poisson sampling, PLD accounting)"
    )
    fixed = spent(FixedSampled(1, 9, Gaussian(8.0)), 1e-5, "replace-one", "client")
    assert all(word in str(fixed) for word in ("client", "replace-one", "fixed-size sampling", "1e-05", "RDP"))
    assert str(spent(Unprotected("x"), 1e-5, "add-remove", "client")).startswith("epsilon unbounded at")


@pytest.mark.parametrize(("event", "sampling"), [
    (Gaussian(9.0), "none"),
    (Together((Gaussian(9.0), PoissonSampled(0.1, Gaussian(9.0)))), "poisson"),
    (FixedSampled(1, 9, Laplace(9.0)), "fixed"),
    (Together((FixedSampled(1, 9, Laplace(9.0)), PoissonSampled(0.1, Gaussian(9.0)))), "mixed"),
])  # fmt: skip
def test_a_guarantee_names_the_sampling_that_it_relied_on(event, sampling):
    assert spent(event, 1e-5, "replace-one", "client").sampling == sampling


@pytest.mark.parametrize(("event", "delta", "neighbours", "cure"), [
    (Gaussian(0.0), 1e-5, "add-remove", "0.5 to 10 is usual"),
    (Laplace(-1.0), 1e-5, "add-remove", "0.5 to 10 is usual"),
    (Gaussian(math.nan), 1e-5, "add-remove", "0.5 to 10 is usual"),
    (Gaussian(math.inf), 1e-5, "add-remove", "0.5 to 10 is usual"),
    (PoissonSampled(0.0, Gaussian(1.0)), 1e-5, "add-remove", "cohort / population is usual"),
    (PoissonSampled(1.1, Gaussian(1.0)), 1e-5, "add-remove", "cohort / population is usual"),
    (FixedSampled(0, 5, Gaussian(1.0)), 1e-5, "replace-one", "at most the population"),
    (FixedSampled(6, 5, Gaussian(1.0)), 1e-5, "replace-one", "at most the population"),
    (Repeated(Gaussian(1.0), -1), 1e-5, "add-remove", "count from 0"),
    (Repeated(Repeated(Gaussian(1.0), 2**40), 2**40), 1e-5, "add-remove", "give fewer"),
    (Repeated(Gaussian(-1.0), 0), 1e-5, "add-remove", "0.5 to 10 is usual"),
    (Gaussian(1.0), 0.0, "add-remove", "less than 1 / population"),
    (Gaussian(1.0), 1.0, "add-remove", "less than 1 / population"),
    (Unprotected("x"), math.nan, "add-remove", "less than 1 / population"),
    (Gaussian(1.0), 1e-5, "twins", "choose 'add-remove' or 'replace-one'"),
    (PoissonSampled(0.1, Gaussian(1.0)), 1e-14, "add-remove", "ask for 1e-13 or more"),
    (FixedSampled(1, 5, Gaussian(1.0)), 1e-5, "add-remove", "ask for neighbours='replace-one'"),
    (Together((FixedSampled(1, 5, Gaussian(1.0)), PoissonSampled(0.1, Gaussian(1.0)))), 1e-5, "replace-one",
     "sample every release in the same way"),
])  # fmt: skip
def test_what_cannot_be_accounted_for_is_refused_in_one_line(event, delta, neighbours, cure):
    with pytest.raises(AdmissionError, match=cure) as refusal:
        spent(event, delta, neighbours, "client")
    assert "\n" not in str(refusal.value)


def test_each_accountant_refuses_what_it_does_not_cover():
    with pytest.raises(AdmissionError, match="account for it by RDP"):
        pld(FixedSampled(1, 5, Gaussian(1.0)), 1e-5, "replace-one")
    with pytest.raises(AdmissionError, match="ask for neighbours='add-remove'"):
        rdp(PoissonSampled(0.1, Gaussian(1.0)), 1e-5, "replace-one")


def test_an_unknown_event_is_not_ignored():
    with pytest.raises(AssertionError):
        spent(Together((Gaussian(1.0), "something")), 1e-5, "add-remove", "client")


def test_epsilon_is_what_the_events_cost():
    asked = epsilon(noise_multiplier=1.1, sample_rate=0.01, rounds=1000, delta=1e-5)
    assert asked == spent(RELEASES[0][0], 1e-5, "add-remove", "client").epsilon
    fixed = epsilon(
        noise_multiplier=3,
        sample_rate=0.01,
        rounds=9,
        delta=1e-5,
        sampling="fixed",
        neighbours="replace-one",
        population=980,
    )
    assert fixed == rdp(Repeated(FixedSampled(10, 980, Gaussian(3)), 9), 1e-5, "replace-one")


@pytest.mark.parametrize(("arguments", "cure"), [
    ({"sampling": "fixed", "sample_rate": 0.1, "neighbours": "replace-one"}, "give population="),
    ({"sampling": "fixed", "sample_rate": 0.1, "population": 100}, "ask for neighbours='replace-one'"),
    ({"sampling": "fixed", "sample_rate": 0.01, "population": 10, "neighbours": "replace-one"}, "a count of at least 1"),
    ({"sampling": "none", "sample_rate": 0.1}, "say how units are sampled"),
    ({"sampling": "shuffled"}, "choose 'poisson', 'fixed' or 'none'"),
    ({"sample_rate": 0.0}, "cohort / population is usual"),
    ({"rounds": -1}, "count from 0"),
])  # fmt: skip
def test_epsilon_refuses_contradictions(arguments, cure):
    with pytest.raises(AdmissionError, match=cure):
        epsilon(**{"noise_multiplier": 1.0, "rounds": 10, "delta": 1e-5, **arguments})
