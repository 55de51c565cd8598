"""Laws of metrics: they are scikit-learn's, and clients' statistics add up to the metric of all examples."""

import functools
import math
import operator

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from koinon.core.errors import AdmissionError
from koinon.learn.metrics import AUROC, R2, Accuracy, MeanAbsoluteError, MeanSquaredError

SEEDS = st.integers(0, 10_000)
COUNTS = st.integers(2, 60)


def draw(seed, *shape, high=None):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng) if high is None else torch.randint(high, shape, generator=rng)


def error_bound(ranking):
    """Half the sum over bins of the product of the two classes' shares."""
    low, high = np.array(ranking.negatives), np.array(ranking.positives)
    return (low / low.sum() * high / high.sum()).sum() / 2


@given(SEEDS, COUNTS, st.integers(2, 5))
def test_accuracy_of_many_classes_is_sklearns(seed, count, classes):
    outputs, targets = draw(seed, count, classes), draw(seed + 1, count, high=classes)
    assert Accuracy().measure(outputs, targets).value == pytest.approx(sk.accuracy_score(targets, outputs.argmax(1)))


@given(SEEDS, COUNTS, st.sampled_from([(-1,), (-1, 1)]), st.sampled_from([(-1,), (-1, 1)]), st.booleans())
def test_accuracy_of_one_logit_is_sklearns(seed, count, outputs_shape, targets_shape, floating):
    outputs, targets = draw(seed, count), draw(seed + 1, count, high=2)
    statistic = Accuracy().measure(
        outputs.view(outputs_shape), (targets.float() if floating else targets).view(targets_shape)
    )
    assert statistic.value == pytest.approx(sk.accuracy_score(targets, outputs > 0))


def test_accuracy_of_sequences_counts_every_position():
    outputs, targets = draw(0, 6, 4, 5), draw(1, 6, 5, high=4)
    statistic = Accuracy().measure(outputs, targets)
    assert (statistic.value, statistic.count) == (
        pytest.approx((outputs.argmax(1) == targets).double().mean().item()),
        30,
    )


@given(SEEDS, COUNTS, st.sampled_from([2, 16, 1024]), st.sampled_from(["n", "n1", "n2"]), st.floats(0.1, 20))
def test_auroc_is_sklearns_within_the_stated_bound(seed, count, bins, form, spread):
    targets = draw(seed + 1, count, high=2)
    assume(0 < targets.sum() < count)
    logits = spread * (draw(seed, count) + targets)
    shift = draw(seed + 2, count).double()
    outputs = {"n": logits, "n1": logits.view(-1, 1), "n2": torch.stack((shift, shift + logits), 1)}[form]
    ranking = AUROC(bins).measure(outputs, targets)
    assert sum(ranking.negatives) + sum(ranking.positives) == count
    assert abs(ranking.value - sk.roc_auc_score(targets, logits)) <= error_bound(ranking) + 1e-9


def test_aurocs_error_is_small_at_the_usual_number_of_bins():
    targets = draw(1, 5000, high=2)
    logits = draw(0, 5000) + targets
    assert abs(AUROC().measure(logits, targets).value - sk.roc_auc_score(targets, logits)) < 1e-3


@pytest.mark.parametrize("logit", [-1e9, 1e9, math.inf, -math.inf])
def test_auroc_takes_the_most_certain_outputs(logit):
    ranking = AUROC(4).measure(torch.tensor([logit]), torch.tensor([1]))
    assert ranking.positives == ((0, 0, 0, 1) if logit > 0 else (1, 0, 0, 0))


@given(SEEDS, COUNTS, st.booleans())
def test_regression_metrics_are_sklearns(seed, count, column):
    outputs, targets = draw(seed, count), 3 * draw(seed + 1, count) + 10
    shaped = outputs.view(-1, 1) if column else outputs
    exact = targets.double().numpy(), outputs.double().numpy()
    assert MeanSquaredError().measure(shaped, targets).value == pytest.approx(sk.mean_squared_error(*exact))
    assert MeanAbsoluteError().measure(shaped, targets).value == pytest.approx(sk.mean_absolute_error(*exact))
    assert R2().measure(shaped, targets).value == pytest.approx(sk.r2_score(*exact), rel=1e-6)


@pytest.mark.parametrize("metric", [Accuracy(), AUROC(64), MeanSquaredError(), MeanAbsoluteError(), R2()])
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6))
@settings(deadline=None)
def test_clients_statistics_add_up_to_the_metric_of_all_examples(metric, seed, sizes):
    outputs, targets = draw(seed, sum(sizes)), draw(seed + 1, sum(sizes), high=2)
    parts = [metric.measure(o, t) for o, t in zip(outputs.split(sizes), targets.split(sizes), strict=True)]
    together = functools.reduce(operator.add, parts).value
    assert together == pytest.approx(metric.measure(outputs, targets).value, nan_ok=True)


@pytest.mark.parametrize(("metric", "outputs", "targets"), [
    (Accuracy(), (8, 3), (8, 1)),
    (Accuracy(), (8, 3), (7,)),
    (Accuracy(), (8, 1), (7,)),
    (AUROC(), (8, 3), (8,)),
    (AUROC(), (8,), (1,)),
    (MeanSquaredError(), (8, 2), (8,)),
    (MeanSquaredError(), (2, 8), (8, 2)),
    (MeanAbsoluteError(), (8, 1), (1, 8)),
    (R2(), (8, 2), (8, 2)),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(metric, outputs, targets):
    with pytest.raises(ValueError, match=metric.name):
        metric.measure(torch.zeros(outputs), torch.zeros(targets))


def test_auroc_refuses_what_is_not_binary_or_not_a_number():
    with pytest.raises(ValueError, match="0 or 1"):
        AUROC().measure(torch.zeros(2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="not numbers"):
        AUROC().measure(torch.tensor([math.nan]), torch.tensor([0]))
    with pytest.raises(AdmissionError, match="at least 2 bins"):
        AUROC(bins=1)
