"""Noise that is correlated between rounds: its law, what it covers, and that nobody takes part more often than that."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from torch import nn

import koinon as kn
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.types import Cohort, Spec
from koinon.durable.history import RunInfo
from koinon.durable.ledger import Ledger
from koinon.durable.store import Store
from koinon.privacy.factorization import best_bands, coefficients, error, sensitivity
from koinon.protocol.events import RoundExtended, RoundOpened
from koinon.run.coordinator import Coordinator
from koinon.run.settings import Settings
from koinon.strategy.protection import protections
from koinon.update.stage import Chain, Context
from koinon.view.progress import Quiet

QUIET = kn.Evaluation(federated=False)
LAYOUT = Layout.of(nn.Linear(1000, 5))
LENGTH = LAYOUT.length


def mixing(bands: int, rounds: int) -> np.ndarray:
    """C: the inverse of the Toeplitz matrix with which the noise is correlated."""
    column = np.zeros(rounds)
    column[: min(bands, rounds)] = coefficients(bands)[:rounds]
    return np.linalg.inv(linalg.toeplitz(column, np.zeros(rounds)))


def drawn(stage: kn.CorrelatedNoise, rounds: int) -> np.ndarray:
    """The noise of so many rounds, as the server adds it; [rounds, LENGTH]."""
    chain, found = Chain((kn.Clip(0.5), stage)), []
    for round in range(1, rounds + 1):
        context = Context(round, Spec(), LAYOUT, torch.Generator, Noise.seeded(3))
        found.append(chain.on_server({}, torch.zeros(LENGTH), Cohort(round, 4, 4.0), context)[1].numpy())
    return np.stack(found)


@pytest.mark.parametrize(("bands", "separation"), [(1, 1), (2, 3), (8, 4)])
def test_undone_the_correlation_leaves_the_distribution_that_is_accounted(bands, separation) -> None:
    rounds, stage = 12, kn.CorrelatedNoise(2.0, 12, separation, cohort=20, bands=bands)
    white = mixing(bands, rounds) @ drawn(stage, rounds)
    law = stats.norm(scale=2.0 * 0.5 / 20 * sensitivity(bands, rounds, separation))
    for row in white:
        assert stats.kstest(row, law.cdf).pvalue > 1e-4
    assert np.abs(np.corrcoef(white) - np.eye(rounds)).max() < 0.07  # 66 pairs of 5,005 draws each: five deviations


def test_a_server_that_starts_again_takes_back_the_noise_that_it_gave() -> None:
    stage = kn.CorrelatedNoise(2.0, 12, 3, cohort=20, bands=4)
    assert np.array_equal(drawn(stage, 6), drawn(stage, 12)[:6])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4))
def test_nobody_can_add_more_than_the_sensitivity(bands, rounds, separation) -> None:
    c = mixing(bands, rounds)
    assert (np.diff(c[:, 0]) <= 1e-12).all() and (c >= -1e-12).all()
    allowed = (
        subset
        for size in range(1, rounds + 1)
        for subset in itertools.combinations(range(rounds), size)
        if all(later - earlier >= separation for earlier, later in itertools.pairwise(subset))
    )
    worst = max(np.linalg.norm(c[:, list(subset)].sum(1)) for subset in allowed)
    assert sensitivity(bands, rounds, separation) == pytest.approx(worst, rel=1e-9)


def test_with_one_band_it_is_independent_noise_and_with_more_it_is_better_where_clients_return_late() -> None:
    assert sensitivity(1, 100, 10) == pytest.approx(10**0.5)
    assert error(1, 100, 100) == pytest.approx((sum(range(1, 101)) / 100) ** 0.5)
    assert best_bands(100, 1) == 1
    assert error(1, 100, 10) / error(best_bands(100, 10), 100, 10) == pytest.approx(2.2, abs=0.05)
    assert error(1, 500, 50) / error(best_bands(500, 50), 500, 50) == pytest.approx(4.3, abs=0.05)


def samples(seed: int) -> kn.Samples:
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    return kn.Samples(inputs, inputs.sum(1, keepdim=True))


def federation(
    rounds: int = 6, separation: int = 5, sample: object = kn.RoundRobin(4), **more: object
) -> kn.Federation:
    learner = kn.TorchLearner(lambda: nn.Linear(3, 1), nn.MSELoss(), functools.partial(torch.optim.SGD, lr=0.1))
    stages = (kn.Clip(0.5), kn.CorrelatedNoise(2.0, 6, separation, cohort=4))
    return kn.Federation(learner, kn.fedavg(stages=stages, sample=sample), rounds, QUIET, **more)


def simulated(made: kn.Federation, clients: int, folder) -> kn.Run:
    return kn.simulate(made, kn.Population.of([samples(n) for n in range(clients)]), runs=folder, progress=Quiet())


def test_a_run_is_one_release_however_many_rounds_it_has(tmp_path) -> None:
    run = simulated(federation(), 20, tmp_path)
    once = kn.privacy.epsilon(noise_multiplier=2.0, rounds=1, delta=1e-5, sampling="none", neighbours="replace-one")
    assert run.epsilon == once
    assert [len(record.releases) for record in run.history] == [1, 0, 0, 0, 0, 0]
    asked = {record.round: {part.client for part in record.participants} for record in run.history}
    assert all(asked[a].isdisjoint(asked[b]) for a, b in itertools.combinations(asked, 2) if b - a < 5)


def test_a_node_is_charged_for_a_run_once(tmp_path) -> None:
    ledger = Ledger(tmp_path)
    for round in (2, 5):
        ledger.charge("run", round, federation().protections)
    ledger.charge("another", 1, federation().protections)
    assert [(run, round, release.times) for run, round, release in ledger.charges()] == [
        ("run", 2, 1),
        ("another", 1, 1),
    ]


def test_a_budget_allows_the_whole_run_or_nothing() -> None:
    once = federation().protections[0].after(6, 1e-5).epsilon
    assert federation(budget=kn.Budget(once + 0.01, 1e-5)).planned == 6
    with pytest.raises(kn.AdmissionError, match="exceeds the budget"):
        federation(budget=kn.Budget(once - 0.01, 1e-5))


def test_the_server_asks_nobody_again_too_soon(tmp_path) -> None:
    made = federation(sample=kn.RoundRobin(2), separation=3)
    info = RunInfo("run", "app", made.digest, 6, 0, 4, "now", "running", "network", delta=1e-5)
    store = Store(tmp_path)
    server = Coordinator(made, info, store, Settings(minimum_nodes=6), clock=lambda: 0.0)
    store.persist(RoundOpened(1, ("a", "b"), 2, 1), RoundExtended(1, ("c",)), RoundOpened(2, ("d", "e"), 2, 1))
    sizes = dict.fromkeys("abcdefg", 1)
    assert server._draw(3, sizes) == ["f", "g"]
    assert set(server._draw(4, sizes)) <= set("abcfg")
    assert server._draw(3, dict.fromkeys("abcde", 1)) == []


def test_too_few_clients_are_refused(tmp_path) -> None:
    with pytest.raises(kn.AdmissionError, match="give it separation=4, or wait for 20 clients"):
        simulated(federation(), 19, tmp_path)
    made = federation()
    info = RunInfo("run", "app", made.digest, 6, 0, 4, "now", "running", "network", delta=1e-5)
    with pytest.raises(kn.AdmissionError, match="wait for 20 clients"):
        Coordinator(made, info, Store(tmp_path / "run"), Settings(minimum_nodes=10), clock=lambda: 0.0)


def test_everyone_in_every_round_is_covered_where_it_is_said(tmp_path) -> None:
    run = simulated(federation(separation=1, sample=kn.Everyone()), 4, tmp_path)
    assert run.epsilon == kn.privacy.epsilon(noise_multiplier=2.0, rounds=1, delta=1e-5, sampling="none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sample": kn.Everyone()}, "give separation=1"),
        ({"sample": kn.Uniform(4)}, "sample by RoundRobin"),
        ({"sample": kn.Poisson(0.1)}, "sample by RoundRobin"),
        ({"rounds": 7}, "rounds=7"),
        ({"separation": 0}, "at least 1"),
    ],
)
def test_what_the_noise_does_not_cover_is_refused(change, words) -> None:
    with pytest.raises(kn.AdmissionError, match=words):
        federation(**change)


def test_more_bands_than_are_kept_and_a_round_too_many_are_refused() -> None:
    with pytest.raises(kn.AdmissionError, match="1 to 64 bands"):
        kn.CorrelatedNoise(1.0, 10, 1, bands=65)
    with pytest.raises(kn.AdmissionError, match="beyond the 6"):
        drawn(kn.CorrelatedNoise(1.0, 6, 1, cohort=4), 7)
    with pytest.raises(kn.AdmissionError, match="Clip"):
        kn.fedavg(stages=(kn.CorrelatedNoise(1.0, 6, 1, cohort=4),))
    with pytest.raises(kn.AdmissionError, match="AdaptiveClip"):
        kn.fedavg(stages=(kn.AdaptiveClip(), kn.CorrelatedNoise(1.0, 6, 1, cohort=400)))


def test_only_this_noise_is_a_release_of_many_rounds() -> None:
    chain = Chain((kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=4)))
    assert [each.covers for each in protections(chain, kn.Everyone(), None, 10)] == [None]
    assert [each.times(5) for each in federation().protections] == [1]
