"""Laws of additive statistics: any split of the examples gives the metric of all."""

import functools
import math
import operator

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.statistics import Ranking, Ratio, Statistic, Variation, merge, values

COUNTS = st.integers(0, 1000)
WHOLE = COUNTS.map(float)  # sums of whole numbers are exact, so equality needs no tolerance
RATIOS = st.builds(Ratio, WHOLE, WHOLE)
BINS = st.tuples(*[COUNTS] * 5)
RANKINGS = st.builds(Ranking, BINS, BINS)
VARIATIONS = st.builds(Variation, WHOLE, WHOLE, WHOLE, WHOLE)
KINDS = [RATIOS, RANKINGS, VARIATIONS]
TRIPLES = st.one_of([st.tuples(kind, kind, kind) for kind in KINDS])


@given(TRIPLES)
def test_addition_is_associative_and_commutative(triple):
    a, b, c = triple
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), RATIOS), max_size=6))
def test_merging_adds_by_name_and_a_missing_name_adds_nothing(parts):
    merged = merge(parts)
    for name in "xyz":
        having = [part[name] for part in parts if name in part]
        assert (name in merged) == bool(having)
        if having:
            assert merged[name] == functools.reduce(operator.add, having)


@given(st.lists(st.dictionaries(st.sampled_from("xy"), RATIOS), max_size=6), st.integers(0, 6))
def test_merging_by_groups_is_merging_all(parts, cut):
    assert merge((merge(parts[:cut]), merge(parts[cut:]))) == merge(parts)


@given(st.lists(st.tuples(WHOLE, st.integers(1, 9)), min_size=1, max_size=9))
def test_a_ratio_is_the_mean_over_examples_not_over_clients(clients):
    merged = functools.reduce(operator.add, [Ratio(mean * count, count) for mean, count in clients])
    everyone = [mean for mean, count in clients for _ in range(count)]
    assert merged.value == pytest.approx(np.mean(everyone))


def auroc(negatives, positives):
    low, high = np.repeat(range(5), negatives), np.repeat(range(5), positives)
    return np.mean(np.sign(high[:, None] - low[None, :]) / 2 + 0.5)


@given(*[st.tuples(*[st.integers(0, 8)] * 5).filter(any)] * 2)
def test_a_ranking_is_the_chance_that_a_positive_beats_a_negative(negatives, positives):
    assert Ranking(negatives, positives).value == pytest.approx(auroc(negatives, positives))


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=30))
def test_a_variation_is_r2(pairs):
    wanted, predicted = np.array(pairs, float).T
    value = Variation(len(wanted), wanted.sum(), (wanted**2).sum(), ((predicted - wanted) ** 2).sum()).value
    spread = ((wanted - wanted.mean()) ** 2).sum()
    if spread < 1e-9:
        assert math.isnan(value)
    else:
        assert value == pytest.approx(1 - ((predicted - wanted) ** 2).sum() / spread)


@pytest.mark.parametrize("empty", [Ratio(0, 0), Ranking((0,), (3,)), Ranking((3,), (0,)), Variation(0, 0, 0, 0)])
def test_no_value_is_not_a_number(empty):
    assert math.isnan(empty.value)


def test_rankings_of_different_resolution_do_not_add():
    with pytest.raises(ValueError, match="bins"):
        Ranking((1,), (1,)) + Ranking((1, 2), (1, 2))


def test_values_takes_each_metrics_value():
    assert values({"a": Ratio(1, 2), "b": Ranking((1, 0), (0, 1))}) == {"a": 0.5, "b": 1.0}


@given(st.one_of(KINDS))
def test_a_statistic_survives_encoding(statistic):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(statistic), type=Statistic) == statistic
