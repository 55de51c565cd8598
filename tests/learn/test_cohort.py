"""Clients trained at once: what each would have made alone, and exactly the clients and models that this fits."""

import functools
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import koinon as kn
from koinon.core.rng import generator
from koinon.data.dataset import TorchDataset
from koinon.learn import torch as learning
from koinon.learn.corrections import Proximal
from koinon.learn.dense import Dense, dense_layers
from koinon.learn.learner import CohortLearner, LocalTask

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def learner(model, loss=None, optimizer=SGD, **more) -> kn.TorchLearner:
    return kn.TorchLearner(model, loss or nn.CrossEntropyLoss(), optimizer, **more)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6, bias=False), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)
    )


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def samples(count: int, seed: int = 0) -> kn.Samples:
    rng = torch.Generator().manual_seed(seed)
    return kn.Samples(torch.randn(count, 3, 4, generator=rng), torch.randint(3, (count,), generator=rng))


def both(of, datas, task=None):
    """What clients make at once, and each alone."""
    assert isinstance(of, CohortLearner)
    start, tasks = of.initial(0), [task or LocalTask(1)] * len(datas)
    before = start.clone()
    rngs = [[generator(0, "train", 1, str(place)) for place in range(len(datas))] for _ in range(2)]
    together = of.train_cohort(start, datas, tasks, rngs[0])
    assert torch.equal(start, before)
    return together, [of._alone(start, data, tasks[0], rng) for data, rng in zip(datas, rngs[1], strict=True)]


def same(update, alone, tolerance: float = 1e-5) -> None:
    assert (update.delta - alone.delta).norm() <= tolerance * alone.delta.norm()
    assert (update.weight, update.examples) == (alone.weight, alone.examples)
    loss, expected = update.metrics["train_loss"], alone.metrics["train_loss"]
    assert loss.count == expected.count
    assert loss.value == pytest.approx(expected.value, rel=1e-5)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([mlp, deep, plain]),
    st.integers(0, 40),
)
@settings(max_examples=60)
def test_clients_at_once_make_what_each_makes_alone(counts, batch_size, epochs, model, block):
    of = learner(model, batch_size=batch_size, epochs=epochs)
    assert of.together
    with mock.patch.object(Dense, "block", block):
        together, alone = both(of, [samples(count, seed) for seed, count in enumerate(counts)])
    for update, expected in zip(together, alone, strict=True):
        same(update, expected)


def test_more_examples_than_a_block_has():
    together, alone = both(learner(mlp, batch_size=100), [samples(730, seed) for seed in range(3)])
    for update, expected in zip(together, alone, strict=True):
        same(update, expected)


def test_they_are_trained_at_once(monkeypatch):
    of = learner(mlp)
    monkeypatch.setattr(kn.TorchLearner, "train", lambda *arguments: pytest.fail("trained alone"))
    updates = of.train_cohort(
        of.initial(0), [samples(9), samples(9, 1)], [LocalTask(1)] * 2, [generator(0, "a"), generator(0, "b")]
    )
    assert len(updates) == 2


def test_memory_is_used_again_and_nothing_leaks_from_one_call_to_the_next():
    of = learner(mlp)
    datas = [samples(9, seed) for seed in range(4)]
    first, _ = both(of, datas)
    kept = [update.delta.clone() for update in first]
    both(of, [samples(21, seed) for seed in range(7)])
    again, _ = both(of, datas)
    for update, old, new in zip(first, kept, again, strict=True):
        assert torch.equal(update.delta, old), "an update is the caller's"
        assert torch.equal(new.delta, old)


def test_one_clients_fault_is_that_clients_alone():
    broken = samples(9, 5)
    datas = [samples(9), kn.Samples(broken.inputs * float("nan"), broken.targets), samples(9, 2), samples(0)]
    together, alone = both(learner(mlp), datas)
    assert (
        str(together[1])
        == str(alone[1])
        == "round 1, step 1: the loss is nan; lower the learning rate or scale the inputs"
    )
    assert isinstance(together[3], kn.ClientFailed) and str(together[3]) == str(alone[3])
    same(together[0], alone[0])
    same(together[2], alone[2])


class Lazy:
    """A torch dataset; `pairs[7]` cannot be read."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int):
        if index == 7:
            raise OSError("the disk is broken")
        return torch.zeros(3, 4), 0


@pytest.mark.parametrize(
    "odd",
    [
        kn.Samples(samples(9).inputs, torch.arange(9) % 3 - 1),
        kn.Samples(samples(9).inputs, torch.arange(9) % 4),
        kn.Samples(samples(9).inputs.double(), samples(9).targets),
        kn.Samples(samples(9).inputs, nn.functional.one_hot(samples(9).targets, 3).float()),
        kn.Samples(torch.randn(9, 3, 5), samples(9).targets),
        TorchDataset(Lazy()),
    ],
    ids=["class -1", "class 3", "float64", "probabilities", "another size", "unreadable"],
)
def test_data_that_does_not_fit_is_trained_alone_with_the_same_draws(odd):
    together, alone = both(learner(mlp), [samples(9), odd, samples(9, 1)])
    assert isinstance(together[1], kn.ClientFailed) == isinstance(alone[1], kn.ClientFailed)
    if isinstance(alone[1], kn.ClientFailed):
        assert str(together[1]) == str(alone[1])
    for place in (0, 2):
        assert torch.equal(together[place].delta, alone[place].delta)


def test_a_torch_dataset_will_do():
    pairs = [(samples(9).inputs[place], samples(9).targets[place]) for place in range(9)]
    together, alone = both(learner(mlp), [TorchDataset(pairs), samples(9, 1)])
    same(together[0], alone[0])
    same(together[1], alone[1])


def test_where_gradients_are_corrected_each_is_trained_alone():
    together, alone = both(learner(mlp), [samples(9), samples(9, 1)], LocalTask(1, Proximal(0.5)))
    assert all(torch.equal(update.delta, expected.delta) for update, expected in zip(together, alone, strict=True))


def hooked() -> nn.Module:
    module = mlp()
    module.register_forward_hook(lambda *arguments: None)
    return module


def frozen() -> nn.Module:
    module = mlp()
    module[1].weight.requires_grad_(False)
    return module


def tied() -> nn.Module:
    layer = nn.Linear(12, 12)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


class Own(nn.Sequential):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


OTHERS = {
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout()),
    "norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)),
    "two activations": lambda: nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Tanh()),
    "half": lambda: mlp().half(),
    "flattens later": lambda: nn.Sequential(nn.Linear(12, 3), nn.Flatten()),
    "flattens a part": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(12, 3)),
    "hooks": hooked,
    "frozen": frozen,
    "tied": tied,
    "a class of its own": lambda: Own(nn.Flatten(), nn.Linear(12, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_left_to_the_loop(name):
    assert not learner(OTHERS[name]).together
    with pytest.raises(kn.AdmissionError, match="leave out batched=True"):
        learner(OTHERS[name], batched=True)


@pytest.mark.parametrize(
    "more",
    [
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"loss": nn.CrossEntropyLoss(reduction="sum")},
        {"loss": nn.CrossEntropyLoss(weight=torch.ones(3))},
        {"loss": nn.CrossEntropyLoss(ignore_index=1)},
        {"loss": nn.MultiMarginLoss()},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)},
        {"optimizer": torch.optim.Adam},
        {"dp": kn.DPSGD(clip_norm=1.0, noise_multiplier=1.0, sample_rate=0.5), "loss": nn.functional.cross_entropy},
    ],
    ids=["smooth", "sum", "weighted", "ignoring", "margin", "momentum", "adam", "dp"],
)
def test_other_losses_and_optimizers_are_left_to_the_loop(more):
    assert not learner(mlp, **more).together


def test_which_path_is_taken_follows_from_the_size_and_can_be_chosen(monkeypatch):
    assert learner(mlp, nn.functional.cross_entropy).together
    assert not learner(mlp, batched=False).together
    monkeypatch.setattr(learning, "BATCHED_LENGTH", 100)
    assert not learner(mlp).together
    assert learner(mlp, batched=True).together


def test_without_a_flatten_only_rows_fit():
    of = learner(lambda: nn.Sequential(nn.Linear(4, 3)))
    assert dense_layers(of._workspace.module, of.layout, of.loss)
    rows = [kn.Samples(samples(9, seed).inputs[:, 0], samples(9, seed).targets) for seed in range(2)]
    together, alone = both(of, rows)
    same(together[0], alone[0])
    together, alone = both(of, [kn.Samples(data.inputs[:, None], data.targets) for data in rows])
    assert [str(each) for each in together] == [str(each) for each in alone], (
        "a loss that cannot be is the client's fault"
    )
