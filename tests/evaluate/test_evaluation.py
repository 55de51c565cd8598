"""Laws of central and federated evaluation, with a real learner."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from koinon.core.errors import AdmissionError
from koinon.data.dataset import DataSet, Samples
from koinon.evaluate.evaluation import Evaluation, central, on_client
from koinon.learn.metrics import Accuracy
from koinon.learn.torch import TorchLearner

LEARNER = TorchLearner(lambda: nn.Linear(3, 2), nn.CrossEntropyLoss(), metrics=(Accuracy(),))
MODEL = LEARNER.initial(0)


def samples(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Samples(torch.randn(count, 3, generator=rng), torch.randint(2, (count,), generator=rng))


@given(st.integers(1, 9), st.integers(1, 30))
def test_the_server_evaluates_every_so_many_rounds_and_after_the_last(every, rounds):
    evaluation = Evaluation(samples(2), every)
    due = [round for round in range(1, rounds + 1) if evaluation.due(round, rounds)]
    assert due == sorted({*range(every, rounds + 1, every), rounds})
    assert not any(Evaluation(None, every).due(round, rounds) for round in range(1, rounds + 1))


def test_the_central_metrics_are_the_learners_on_the_test_set():
    test = samples(11)
    assert central(LEARNER, Evaluation(test), MODEL, 1, 5) == LEARNER.evaluate(MODEL, test)
    assert central(LEARNER, Evaluation(test, every=2), MODEL, 1, 5) is None
    assert central(LEARNER, Evaluation(), MODEL, 5, 5) is None


def test_a_callable_is_called_once_and_not_before_it_is_needed():
    calls = []

    def load():
        calls.append(1)
        return samples(4)

    evaluation = Evaluation(load, every=2)
    central(LEARNER, evaluation, MODEL, 1, 4)
    assert calls == []
    first = central(LEARNER, evaluation, MODEL, 2, 4)
    assert first == central(LEARNER, evaluation, MODEL, 4, 4) == LEARNER.evaluate(MODEL, samples(4))
    assert calls == [1]


def test_of_a_data_set_with_a_test_part_that_part_is_used():
    data = DataSet(samples(9, seed=1), samples(4, seed=2))
    assert central(LEARNER, Evaluation(lambda: data), MODEL, 1, 1) == LEARNER.evaluate(MODEL, data.test)
    assert central(LEARNER, Evaluation(DataSet(data.train)), MODEL, 1, 1) == LEARNER.evaluate(MODEL, data.train)


def test_a_client_evaluates_on_its_held_out_part_only():
    data = DataSet(samples(9, seed=1), samples(4, seed=2))
    assert on_client(LEARNER, MODEL, data, {}) == LEARNER.evaluate(MODEL, data.test)
    assert on_client(LEARNER, MODEL, DataSet(data.train), {}) == {}


def test_what_cannot_work_is_refused_at_construction():
    with pytest.raises(AdmissionError, match="at least 1"):
        Evaluation(every=0)
    with pytest.raises(AdmissionError, match="no data set"):
        Evaluation(3)
