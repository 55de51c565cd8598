"""Laws of the server's step: FedAvg is exact, and a saved state goes on to the bit."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from koinon.core.errors import AdmissionError
from koinon.server.optimizer import ServerOptimizer
from koinon.server.yogi import Yogi

MAKERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.5),
    "momentum": functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9, nesterov=True),
    "adam": functools.partial(torch.optim.Adam, lr=0.1, betas=(0.9, 0.99), eps=1e-3),
    "fused adam": functools.partial(torch.optim.Adam, lr=0.1, fused=True),
    "amsgrad": functools.partial(torch.optim.Adam, lr=0.1, amsgrad=True),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.1),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.01),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.1, momentum=0.5, centered=True),
    "nadam": torch.optim.NAdam,
    "asgd": torch.optim.ASGD,
    "yogi": functools.partial(Yogi, lr=0.1),
}
LENGTHS = st.integers(1, 40)
SEEDS = st.integers(0, 10_000)


def vectors(seed, count, length):
    rng = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, length, generator=rng) * 10 ** torch.empty(count, 1).uniform_(-3, 3, generator=rng))


def saved(state):
    return load(save(dict(state)))


@given(LENGTHS, SEEDS)
def test_the_default_is_exactly_model_plus_update(length, seed):
    model, update = vectors(seed, 2, length)
    optimizer = ServerOptimizer()
    state, after = optimizer.step(optimizer.init(length), model.clone(), update.clone())
    assert torch.equal(after, model + update)
    assert after.dtype == torch.float32 and not after.requires_grad
    assert dict(state) == {}


@pytest.mark.parametrize("name", MAKERS)
@given(length=LENGTHS, seed=SEEDS, cut=st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_a_step_is_torchs_and_saving_in_between_changes_no_bit(name, length, seed, cut):
    model, *updates = vectors(seed, 5, length)
    parameter = torch.nn.Parameter(model.clone())
    plain = MAKERS[name]([parameter])
    optimizer = ServerOptimizer(MAKERS[name])
    state = optimizer.init(length)
    for number, update in enumerate(updates):
        if number == cut:
            state, optimizer = saved(state), ServerOptimizer(MAKERS[name])
        parameter.grad = -update
        plain.step()
        state, model = optimizer.step(state, model.clone(), update.clone())
        assert torch.equal(model, parameter.detach())
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_a_step_works_in_the_memory_that_it_was_given():
    model, update = torch.zeros(5), torch.ones(5)
    _, after = ServerOptimizer().step({}, model, update)
    assert after.data_ptr() == model.data_ptr()


def test_a_state_is_not_shared_between_runs_of_one_optimizer():
    optimizer = ServerOptimizer(MAKERS["adam"])
    first, _ = optimizer.step(optimizer.init(3), torch.zeros(3), torch.ones(3))
    assert dict(optimizer.init(3)) == {}
    again, _ = optimizer.step(optimizer.init(3), torch.zeros(3), torch.ones(3))
    assert first["step"] == again["step"] == 1


@pytest.mark.parametrize(("make", "cure"), [
    (functools.partial(torch.optim.SGD, lr=-1), "Invalid learning rate: -1.*give functools.partial"),
    (torch.optim.LBFGS, "without a closure"),
    (functools.partial(Yogi, eps=0), "eps > 0"),
    (lambda parameters: 3, "give functools.partial"),
])  # fmt: skip
def test_what_cannot_step_is_refused_with_the_cure(make, cure):
    with pytest.raises(AdmissionError, match=cure):
        ServerOptimizer(make)


class Counting(torch.optim.SGD):
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["seen"] = 1
        return super().step(closure)


def test_a_state_that_cannot_be_saved_is_refused():
    with pytest.raises(AdmissionError, match="Counting keeps seen, which is no tensor"):
        ServerOptimizer(functools.partial(Counting, lr=1.0))
