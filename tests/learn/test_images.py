"""Convolutions with channels last: the plain loop's model, in the layout's order, and only where nobody can notice."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from koinon.core.rng import generator
from koinon.data.dataset import Samples
from koinon.learn.corrections import Proximal
from koinon.learn.dpsgd import DPSGD
from koinon.learn.learner import LocalTask
from koinon.learn.torch import TorchLearner

OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
}
LAST = torch.channels_last


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(4, 5, 2), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


class Viewing(nn.Module):
    """Many people's code; `view` fails on what lies in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = F.max_pool2d(self.conv(inputs), 1)
        return self.dense(hidden.view(len(hidden), -1))


def images(count: int = 12) -> Samples:
    rng = torch.Generator().manual_seed(0)
    return Samples(torch.randn(count, 3, 6, 6, generator=rng), torch.randint(3, (count,), generator=rng))


def learner(model, optimizer=OPTIMIZERS["sgd"], **more) -> TorchLearner:
    return TorchLearner(model, F.cross_entropy, optimizer, batch_size=5, **more)


def strides(of: TorchLearner) -> set[bool]:
    weights = [weight for weight in of._workspace.parameters if weight.ndim == 4]
    return {weight.is_contiguous(memory_format=LAST) and not weight.is_contiguous() for weight in weights}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("correction", [None, Proximal(0.5)])
def test_a_model_with_channels_last_becomes_the_plain_loops(name, correction):
    of, data = learner(convolutional, OPTIMIZERS[name]), images()
    assert strides(of) == {True}
    plain = TorchLearner(lambda: Plain(convolutional()), F.cross_entropy, OPTIMIZERS[name], batch_size=5)
    assert strides(plain) == {False}
    start = plain.initial(0)
    assert torch.equal(of.initial(0), start), "the vector's order is the layout's, whatever lies how in memory"
    update, expected = (
        each.train(start, data, LocalTask(1, correction), generator(0, "train")).delta for each in (of, plain)
    )
    assert (update - expected).norm() <= 1e-4 * expected.norm()
    assert of.evaluate(start, data)["loss"].value == pytest.approx(plain.evaluate(start, data)["loss"].value, rel=1e-5)


class Plain(nn.Module):
    """A class of its own, which is left as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.module(inputs)


def test_code_that_looks_at_strides_is_left_alone():
    of = learner(Viewing)
    assert strides(of) == {False}
    of.train(of.initial(0), images(), LocalTask(1), generator(0, "train"))


def test_whoever_asks_has_channels_last():
    of = learner(lambda: Plain(convolutional()).to(memory_format=LAST))
    assert strides(of) == {True}
    start = of.initial(0)
    assert torch.equal(start, learner(convolutional).initial(0))
    assert of.train(start, images(), LocalTask(1), generator(0, "train")).delta.any()


def test_a_given_module_stays_as_it_was():
    module = convolutional()
    before = [(weight.stride(), weight.clone()) for weight in module.parameters()]
    of = learner(module)
    of.train(of.initial(0), images(), LocalTask(1), generator(0, "train"))
    for weight, (stride, value) in zip(module.parameters(), before, strict=True):
        assert weight.stride() == stride and torch.equal(weight, value)


def test_per_example_gradients_keep_the_usual_order():
    def plain() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))

    assert strides(learner(plain, dp=DPSGD(clip_norm=1.0, noise_multiplier=1.0, sample_rate=0.5))) == {False}
