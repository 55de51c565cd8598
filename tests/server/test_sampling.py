"""Laws of sampling, and inclusion frequencies under a fixed seed."""

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from koinon.core.errors import AdmissionError
from koinon.core.rng import generator
from koinon.core.types import canonical
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Uniform, Weighted

COUNTS = st.integers(1, 12)
RATES = st.floats(0.01, 1)
SAMPLERS = st.one_of(
    st.just(Everyone()),
    COUNTS.map(Uniform),
    COUNTS.map(Weighted),
    RATES.map(Poisson),
    COUNTS.map(RoundRobin),
)


def names(count):
    return [str(index) for index in range(count)]


def rng(seed=0, round=1):
    return generator(seed, "sample", round)


@given(SAMPLERS, st.integers(0, 30), st.integers(0, 99), st.integers(1, 50))
def test_a_cohort_is_some_of_the_candidates_once_in_canonical_order(sampler, population, seed, round):
    candidates = names(population)
    sizes = {client: 1 + int(client) for client in candidates}
    cohort = sampler.sample(candidates, round, rng(seed), sizes)
    assert cohort == canonical(set(cohort))
    assert set(cohort) <= set(candidates)
    assert cohort == sampler.sample(candidates, round, rng(seed), sizes)
    if isinstance(sampler, Everyone):
        assert len(cohort) == population
    elif not isinstance(sampler, Poisson):
        assert len(cohort) == min(sampler.count, population)


@given(st.one_of(COUNTS.map(Uniform), st.floats(0.3, 0.7).map(Poisson), COUNTS.map(Weighted)))
def test_seeds_make_a_difference(sampler):
    candidates = names(400)
    cohorts = {tuple(sampler.sample(candidates, 1, rng(seed), dict.fromkeys(candidates, 1))) for seed in range(5)}
    assert len(cohorts) > 1


@pytest.mark.parametrize(("population", "count"), [(5, 2), (5, 4), (6, 3)])
def test_every_subset_of_a_uniform_cohort_is_equally_likely(population, count):
    draws, stream = 4000, rng()
    found = Counter(tuple(Uniform(count).sample(names(population), 1, stream)) for _ in range(draws))
    subsets = list(itertools.combinations(names(population), count))
    assert set(found) == set(subsets)
    assert stats.chisquare([found[subset] for subset in subsets]).pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_poisson_includes_each_independently(rate):
    population, draws, stream = 4, 4000, rng()
    found = Counter(tuple(Poisson(rate).sample(names(population), 1, stream)) for _ in range(draws))
    subsets = [subset for size in range(population + 1) for subset in itertools.combinations(names(population), size)]
    expected = [draws * rate ** len(subset) * (1 - rate) ** (population - len(subset)) for subset in subsets]
    frequent = [index for index, value in enumerate(expected) if value >= 5]
    rare = draws - sum(expected[index] for index in frequent)
    observed = [found[subsets[index]] for index in frequent]
    assert (
        stats.chisquare(
            [*observed, draws - sum(observed) + 1e-9], [*(expected[i] for i in frequent), rare + 1e-9]
        ).pvalue
        > 1e-3
    )


@pytest.mark.parametrize(("population", "rate"), [(1000, 0.01), (200_000, 0.0005), (1_000_000, 0.3)])
def test_the_size_of_a_poisson_cohort_is_binomial(population, rate):
    stream = rng()
    if population * rate > 1e5:  # one large cohort: within four standard deviations
        sizes = [len(Poisson(rate).sample(Lazy(population), 1, stream))]
        assert abs(sizes[0] - population * rate) < 4 * (population * rate * (1 - rate)) ** 0.5
        return
    sizes = np.array([len(Poisson(rate).sample(Lazy(population), 1, stream)) for _ in range(1500)])
    law = stats.binom(population, rate)
    edges = law.ppf(np.linspace(0, 1, 9))[1:-1]
    cells = np.bincount(np.searchsorted(edges, sizes), minlength=8)
    chances = np.diff([0, *law.cdf(edges), 1])
    assert stats.chisquare(cells, chances * len(sizes)).pvalue > 1e-3


def test_weighted_is_successive_sampling():
    sizes = {"0": 1, "1": 2, "2": 5, "3": 0, "4": 4}
    draws, stream = 6000, rng()
    found = Counter(tuple(Weighted(2).sample(list(sizes), 1, stream, sizes)) for _ in range(draws))
    total = sum(sizes.values())
    chances = Counter()
    for first, second in itertools.permutations([client for client in sizes if sizes[client]], 2):
        chances[tuple(canonical((first, second)))] += sizes[first] / total * sizes[second] / (total - sizes[first])
    assert set(found) == set(chances)
    assert stats.chisquare([found[pair] for pair in chances], [draws * chances[pair] for pair in chances]).pvalue > 1e-3


def test_weighted_never_draws_who_holds_nothing_and_needs_every_size():
    assert Weighted(3).sample(["a", "b"], 1, rng(), {"a": 0, "b": 2}) == ["b"]
    for sizes in (None, {"a": 1}):
        with pytest.raises(AdmissionError, match="size of every candidate; sample by Uniform"):
            Weighted(1).sample(["a", "b"], 1, rng(), sizes)


@given(COUNTS, st.integers(1, 30))
def test_round_robin_takes_everyone_equally_often(count, population):
    candidates = names(population)
    taken = Counter()
    for round in range(1, population + 1):
        taken.update(RoundRobin(count).sample(candidates, round, rng()))
    assert set(taken.values()) == {min(count, population)}
    assert set(taken) == set(candidates)


@given(SAMPLERS, st.integers(0, 50))
def test_a_stated_probability_is_the_mean_share_of_candidates(sampler, population):
    probability = sampler.probability(population)
    if isinstance(sampler, Weighted | RoundRobin):
        assert probability is None
    elif isinstance(sampler, Poisson):
        assert probability == sampler.rate
    elif population:
        cohort = sampler.sample(names(population), 1, rng())
        assert probability == pytest.approx(len(cohort) / population)


class Lazy(Sequence):
    """Names made when asked for, and counted."""

    def __init__(self, count):
        self.count, self.asked = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked += 1
        return str(index)

    def __iter__(self):
        raise AssertionError("looked at everybody")


@pytest.mark.parametrize("sampler", [Uniform(50), Poisson(5e-6), RoundRobin(50)])
def test_a_million_candidates_cost_only_the_cohort(sampler):
    candidates = Lazy(10_000_000)
    tracemalloc.start()
    cohort = sampler.sample(candidates, 7, rng())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert candidates.asked == len(cohort) > 10
    assert peak < 1 << 20
    assert len(set(cohort)) == len(cohort)


@pytest.mark.parametrize(("make", "cure"), [
    (lambda: Uniform(0), "at least 1"),
    (lambda: Weighted(-1), "at least 1"),
    (lambda: RoundRobin(0), "at least 1"),
    (lambda: Poisson(0), r"rate in \(0, 1\]"),
    (lambda: Poisson(1.1), r"rate in \(0, 1\]"),
    (lambda: Poisson(float("nan")), r"rate in \(0, 1\]"),
])  # fmt: skip
def test_senseless_arguments_are_refused(make, cure):
    with pytest.raises(AdmissionError, match=cure):
        make()
