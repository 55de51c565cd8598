"""Populations: made from lists, names and functions; a million clients cost nothing until asked for."""

import pickle
import tracemalloc

import pytest
import torch

from koinon import data
from koinon.core.errors import AdmissionError


def one(number: int) -> data.Samples:
    return data.Samples(torch.full((2, 1), float(number)), torch.zeros(2, dtype=torch.int64))


def test_a_list_is_numbered():
    population = data.Population.of(
        [one(0), data.DataSet(one(1), one(2)), torch.utils.data.TensorDataset(*one(3).batch(slice(None)))]
    )
    assert list(population.ids) == ["0", "1", "2"]
    assert population["1"].train.inputs[0] == 1
    assert population["1"].test.inputs[0] == 2
    assert population["2"].train.batch(torch.tensor([0]))[0].item() == 3


def test_names_stand_in_canonical_order_whatever_the_mapping_s():
    population = data.Population.of({"hungary": one(1), "cleveland": one(2), "b": one(3)})
    assert list(population.ids) == ["b", "hungary", "cleveland"]
    assert population["cleveland"].train.inputs[0] == 2


def test_a_function_gets_the_number_each_time_it_is_asked():
    calls = []
    population = data.Population.of(lambda number: calls.append(number) or one(number), size=5)
    assert calls == []
    assert population["3"].train.inputs[0] == population["3"].train.inputs[0] == 3
    assert calls == [3, 3]


def test_a_million_clients_cost_no_memory():
    tracemalloc.start()
    try:
        population = data.Population.of(one, size=1_000_000)
        assert len(population) == len(population.ids) == 1_000_000
        assert population.ids[-1] == "999999"
        assert population["999999"].train.inputs[0] == 999_999
        assert "1000000" not in population.ids
        assert population.first(500_000).ids[250_000:][7] == "250007"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_client_that_is_sent_takes_its_own_examples_along_and_nobody_elses():
    inputs, targets = torch.randn(1000, 50), torch.arange(1000)
    parts = [data.Samples(inputs[start : start + 10], targets[start : start + 10]) for start in range(0, 1000, 10)]
    sent = pickle.dumps(data.Population.of(parts))
    assert len(sent) < 2 * (inputs.nbytes + targets.nbytes), "not once for each of a hundred clients"
    there = pickle.loads(sent)["7"].train
    assert torch.equal(there.inputs, parts[7].inputs)
    assert torch.equal(there.targets, parts[7].targets)


def test_data_is_not_kept():
    population = data.Population.of(one, size=2)
    assert population["0"] is not population["0"]


def test_the_first_clients_are_the_same_clients():
    whole = data.Population.of({"a": one(1), "b": one(2), "c": one(3)})
    assert list(whole.first(2).ids) == ["a", "b"]
    assert whole.first(2)["b"].train.inputs[0] == 2
    assert data.Population.of(whole) is whole


@pytest.mark.parametrize("unknown", ["5", "-1", "01", "1.0", "", "x", "１", "9" * 5000])
def test_an_unknown_id_is_refused(unknown):
    with pytest.raises(AdmissionError, match=r"^no client .* in this population of 5: 0, 1, 2, \.\.\.$"):
        data.Population.of(one, size=5)[unknown]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.Population.of([]), "at least one client"),
        (lambda: data.Population.of({}), "at least one client"),
        (lambda: data.Population.of(one), "needs size="),
        (lambda: data.Population.of(one, size=0), "size is a whole number"),
        (lambda: data.Population.of([one(0)], size=1), "goes with a function"),
        (lambda: data.Population.of(one(0)), r"one data set becomes many by \.split"),
        (lambda: data.Population.of("digits"), "str is no population"),
        (lambda: data.Population.of([one(0), 7]), "client 1: int is no data set"),
        (lambda: data.Population.of({"a b": one(0)}), "'a b' cannot name a client"),
        (lambda: data.Population.of({3: one(0)}), "3 cannot name a client"),
        (lambda: data.Population.of(lambda _: None, size=2)["1"], "client 1: NoneType is no data set"),
        (lambda: data.Population.of(one, size=3).first(4), "cannot take the first 4 of a population of 3"),
        (lambda: data.Population.of(one, size=3).first(0), "cannot take the first 0"),
    ],
)
def test_what_is_no_population_is_refused_in_one_line(make, message):
    with pytest.raises(AdmissionError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_groups_and_targets_must_match_in_number():
    with pytest.raises(AdmissionError, match="1 groups for 2 examples"):
        data.Samples(torch.zeros(2), torch.zeros(2), ("a",))
    with pytest.raises(AdmissionError, match="2 inputs but 1 targets"):
        data.Samples(torch.zeros(2), torch.zeros(1))
