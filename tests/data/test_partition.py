"""Laws of every partition: nobody's examples overlap, none is left over, minima hold, seeds decide."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from koinon import data
from koinon.core.errors import AdmissionError
from koinon.core.rng import generator
from koinon.data.partition import hold_out

DRAWN = (data.IID(), data.Dirichlet(0.3), data.Dirichlet(1e-6), data.EqualDirichlet(0.1), data.QuantitySkew(0.5))


def labelled(labels: list[int]) -> data.Samples:
    """Examples whose input is their own number."""
    return data.Samples(torch.arange(len(labels)), torch.tensor(labels))


def drawn_parts(partition, samples, clients, seed=0):
    population = data.DataSet(samples).split(partition, clients, seed)
    return [population[client].train.inputs.tolist() for client in population.ids]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=120),
    clients=st.integers(1, 12),
    seed=st.integers(0, 2**40),
    partition=st.sampled_from(DRAWN),
)
def test_parts_are_disjoint_and_cover_everything(labels, clients, seed, partition):
    assume(clients <= len(labels))
    parts = drawn_parts(partition, labelled(labels), clients, seed)
    assert sorted(itertools.chain(*parts)) == list(range(len(labels)))
    assert all(parts)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=120),
    clients=st.integers(1, 10),
    least=st.integers(1, 12),
    alpha=st.sampled_from((1e-6, 0.05, 1.0, 1e6)),
    kind=st.sampled_from((data.Dirichlet, data.QuantitySkew)),
)
def test_the_minimum_is_met_or_refused(labels, clients, least, alpha, kind):
    partition = kind(alpha, min_examples=least)
    if clients * least > len(labels):
        with pytest.raises(AdmissionError, match=f"at most {len(labels) // least} clients"):
            drawn_parts(partition, labelled(labels), clients)
    else:
        assert min(map(len, drawn_parts(partition, labelled(labels), clients))) >= least


@settings(max_examples=40, deadline=None)
@given(size=st.integers(10, 150), clients=st.integers(1, 10), alpha=st.sampled_from((1e-6, 0.1, 10.0)))
def test_equal_dirichlet_and_iid_differ_by_one_at_most(size, clients, alpha):
    samples = labelled([number % 7 for number in range(size)])
    for partition in (data.EqualDirichlet(alpha), data.IID()):
        sizes = [len(part) for part in drawn_parts(partition, samples, clients)]
        assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 8), clients=st.integers(1, 14), held=st.integers(1, 8), seed=st.integers(0, 99))
def test_shards_give_each_client_exactly_so_many_classes(classes, clients, held, seed):
    samples = labelled([number % classes for number in range(20 * classes)])
    if not held <= classes <= clients * held:
        with pytest.raises(AdmissionError, match="classes_per_client must be between"):
            drawn_parts(data.Shards(held), samples, clients, seed)
        return
    parts = drawn_parts(data.Shards(held), samples, clients, seed)
    assert sorted(itertools.chain(*parts)) == list(range(len(samples)))
    assert {len({number % classes for number in part}) for part in parts} == {held}


@pytest.mark.parametrize("seed", range(8))
def test_shards_leave_no_class_without_a_holder(seed):
    parts = drawn_parts(data.Shards(2), labelled(list(range(8)) * 3), 4, seed)
    assert sorted(len(part) for part in parts) == [6, 6, 6, 6]


@pytest.mark.parametrize("partition", [*DRAWN, data.Shards(2)], ids=str)
def test_equal_seeds_give_equal_parts_and_others_do_not(partition):
    samples = labelled([number % 5 for number in range(400)])
    assert drawn_parts(partition, samples, 9, seed=4) == drawn_parts(partition, samples, 9, seed=4)
    assert drawn_parts(partition, samples, 9, seed=4) != drawn_parts(partition, samples, 9, seed=5)


def test_a_small_alpha_skews_labels_and_a_large_one_does_not():
    samples = labelled([number % 10 for number in range(5000)])

    def classes_held(partition):
        return np.mean([len({number % 10 for number in part}) for part in drawn_parts(partition, samples, 20)])

    for kind in (data.Dirichlet, data.EqualDirichlet):
        assert classes_held(kind(0.05)) < 5 < 9.5 < classes_held(kind(100.0))


def test_quantity_skew_skews_sizes_alone():
    parts = drawn_parts(data.QuantitySkew(0.5), labelled([0, 1] * 5000), 10)
    sizes = [len(part) for part in parts]
    assert max(sizes) > 5 * min(sizes)
    assert abs(np.mean([number % 2 for number in max(parts, key=len)]) - 0.5) < 0.05


def test_a_hundred_clients_by_default_and_the_test_part_stays_whole():
    whole = data.load("digits")
    population = whole.split(data.IID())
    assert len(population) == 100
    assert population["0"].test is None
    assert len(whole.test) == 360


def test_natural_gives_every_group_its_own_train_and_test_part():
    train = data.Samples(torch.arange(5), torch.zeros(5), ("b", "a", "b", "c", "a"))
    test = data.Samples(torch.arange(10, 14), torch.zeros(4), ("a", "elsewhere", "b", "a"))
    population = data.DataSet(train, test).split(data.Natural())
    assert list(population.ids) == ["a", "b", "c"]
    assert population["a"].train.inputs.tolist() == [1, 4]
    assert population["a"].test.inputs.tolist() == [10, 13]
    assert population["b"].test.inputs.tolist() == [12]
    assert population["c"].test is None
    assert len(data.DataSet(train).split(data.Natural(), clients=3)) == 3


def test_a_torch_dataset_can_be_split_by_its_labels():
    labels = torch.arange(3000) % 3
    dataset = torch.utils.data.TensorDataset(torch.arange(3000), labels)
    parts = [data.DataSet.of(dataset).split(data.Shards(1), 3)[client].train for client in "012"]
    assert [len(part) for part in parts] == [1000, 1000, 1000]
    inputs, targets = parts[1].batch(torch.tensor([5, 2]))
    assert (inputs % 3).tolist() == targets.tolist() == [1, 1]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=100),
    share=st.sampled_from((0.0, 0.2, 1 / 3, 0.5, 0.9)),
    seed=st.integers(0, 99),
)
def test_holding_out_takes_the_share_of_every_class(labels, share, seed):
    made = hold_out(labelled(labels), share, seed)
    held = [] if made.test is None else made.test.inputs.tolist()
    assert sorted(made.train.inputs.tolist() + held) == list(range(len(labels)))
    for label in set(labels):
        expected = labels.count(label) * share
        assert abs(sum(labels[number] == label for number in held) - expected) < 1 + 1e-9


def test_groups_are_held_out_by_draws_of_their_own():
    samples = data.Samples(torch.arange(80), torch.zeros(80), ("a", "b") * 40)
    held = hold_out(samples, 0.5, 0).test.inputs.tolist()
    rows = {parity: [number // 2 for number in held if number % 2 == parity] for parity in (0, 1)}
    assert len(rows[0]) == len(rows[1]) == 20
    assert rows[0] != rows[1]


def test_a_group_is_held_out_alike_alone_or_with_others():
    samples = data.Samples(torch.arange(60), torch.arange(60) % 2, ("a", "b", "b") * 20)
    alone = samples.subset([number for number in range(60) if number % 3])
    together = hold_out(samples, 0.25, 7).test
    assert [n for n in together.inputs.tolist() if n % 3] == hold_out(alone, 0.25, 7).test.inputs.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.Dirichlet(0), r"Dirichlet\(alpha=0, .*alpha must be between"),
        (lambda: data.Dirichlet(float("nan")), "alpha must be between"),
        (lambda: data.QuantitySkew(-1), "alpha must be between"),
        (lambda: data.EqualDirichlet(float("inf")), "alpha must be between"),
        (lambda: data.Dirichlet(1.0, min_examples=0), "min_examples must be a whole number, at least 1"),
        (lambda: data.Shards(0), "classes_per_client must be a whole number"),
        (lambda: data.Shards(1.5), "classes_per_client must be a whole number"),
        (lambda: drawn_parts(data.IID(), labelled([0, 1]), 3), r"IID\(\) cannot give 3 clients at least 1 of 2"),
        (lambda: drawn_parts(data.IID(), labelled([0, 1]), 0), "cannot split data among 0 clients"),
        (
            lambda: drawn_parts(data.Shards(2), labelled([0] * 50 + [1]), 4),
            "gives one class of only 1 examples to 4 clients",
        ),
        (
            lambda: data.DataSet(data.Samples(torch.zeros(9, 2), torch.zeros(9, 1))).split(data.Dirichlet(1.0), 2),
            r"these are float32 \[n, 1\]: use IID",
        ),
        (lambda: data.DataSet(labelled([0, 1])).split(data.Natural()), "says whose each example is"),
        (
            lambda: data.DataSet(data.Samples(torch.zeros(1), torch.zeros(1), ("Ward 7",))).split(data.Natural()),
            "'Ward 7' cannot name a client",
        ),
        (
            lambda: data.DataSet(data.Samples(torch.zeros(1), torch.zeros(1), ("a",))).split(data.Natural(), 5),
            r"makes 1 clients of this data.*leave out clients=5",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_line(make, message):
    with pytest.raises(AdmissionError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


class Everything:
    """A partition of one's own, which gives all to one client."""

    def __init__(self, client: int) -> None:
        self.client = client

    def owners(self, examples, clients, rng):
        return torch.full((len(examples),), self.client)


def test_a_partition_of_ones_own_is_taken_and_checked():
    assert [len(part) for part in drawn_parts(Everything(1), labelled([0, 0, 0]), 2)] == [0, 3]
    for outside in (-1, 2):
        with pytest.raises(AdmissionError, match="an owner from 0 to 1"):
            drawn_parts(Everything(outside), labelled([0, 0, 0]), 2)


def test_owners_draw_from_the_given_generator_alone():
    samples = labelled([0, 1] * 50)
    torch.manual_seed(0)
    first = data.Dirichlet(0.5).owners(samples, 5, generator(0, "partition"))
    torch.manual_seed(1)
    assert torch.equal(first, data.Dirichlet(0.5).owners(samples, 5, generator(0, "partition")))
