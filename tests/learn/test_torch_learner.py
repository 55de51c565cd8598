"""Laws of TorchLearner: what it gives depends on vector, data and generator, and is what plain PyTorch gives."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from koinon.core.errors import AdmissionError, ClientFailed
from koinon.core.layout import Layout
from koinon.core.rng import generator
from koinon.core.statistics import Ratio, merge, values
from koinon.data.dataset import Samples, TorchDataset
from koinon.learn.corrections import Proximal
from koinon.learn.learner import LocalTask
from koinon.learn.metrics import Accuracy, MeanSquaredError
from koinon.learn.torch import TorchLearner

TASK = LocalTask(round=3)
SGD = functools.partial(torch.optim.SGD, lr=0.1)
OPTIMIZERS = {
    "sgd": SGD,
    "momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "decay": functools.partial(torch.optim.SGD, lr=0.1, weight_decay=0.1),
    "maximize": functools.partial(torch.optim.SGD, lr=0.01, maximize=True),
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "lbfgs": functools.partial(torch.optim.LBFGS, max_iter=3),
}


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def batch_normed():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def samples(count=20, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Samples(torch.randn(count, 4, generator=rng), torch.randint(3, (count,), generator=rng))


def learner(model=mlp, optimizer=SGD, **settings):
    return TorchLearner(model, nn.CrossEntropyLoss(), optimizer, **{"batch_size": 8, **settings})


def train(of, start, data, seed=0, task=TASK):
    return of.train(start, data, task, generator(seed, "train"))


def reference(module, make, data, order_rng, epochs, batch_size, mu=0.0):
    """The loop that everybody writes."""
    optimizer = make(module.parameters())
    start = [parameter.detach().clone() for parameter in module.parameters()]
    losses = []
    for _ in range(epochs):
        for indices in torch.randperm(len(data), generator=order_rng).split(batch_size):

            def closure(indices=indices):
                optimizer.zero_grad()
                loss = F.cross_entropy(module(data.inputs[indices]), data.targets[indices])
                loss.backward()
                for parameter, first in zip(module.parameters(), start, strict=True):
                    if mu:
                        parameter.grad.add_(parameter.detach() - first, alpha=mu)
                return loss

            losses.append((optimizer.step(closure).item(), len(indices)))
    return losses


@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_plain_loop_to_the_bit(name, mu):
    torch.set_num_threads(1)
    data, module = samples(22), mlp()
    of = learner(module, OPTIMIZERS[name], epochs=2)
    start = of.initial(0)
    update = train(of, start, data, task=LocalTask(1, Proximal(mu) if mu else None))
    rng = generator(0, "train")
    torch.randint(2**63 - 1, (), generator=rng)  # what seeds dropout is drawn first
    losses = reference(module, OPTIMIZERS[name], data, rng, epochs=2, batch_size=8, mu=mu)
    assert torch.equal(update.delta, of.layout.gather(module) - start)
    assert update.metrics["train_loss"].value == pytest.approx(sum(loss * n for loss, n in losses) / 44)
    assert update.metrics["train_loss"].count == 44


class Sgd(torch.optim.SGD):
    """Plain SGD in a class that the short cut does not know."""


@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([mlp, batch_normed]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.floats(0.001, 1),
)
@settings(max_examples=25, deadline=None)
def test_the_short_cut_for_plain_sgd_gives_the_optimizers_bits(count, batch_size, epochs, model, dtype, lr):
    if model is batch_normed and (count == 1 or batch_size == 1):
        return
    data = samples(count)
    data = Samples(data.inputs.to(dtype), data.targets)
    deltas = []
    for make in (torch.optim.SGD, Sgd, functools.partial(torch.optim.SGD, foreach=True)):
        of = learner(lambda: model().to(dtype), functools.partial(make, lr=lr), batch_size=batch_size, epochs=epochs)
        deltas.append(train(of, of.initial(0), data).delta)
    assert torch.equal(deltas[0], deltas[1])
    assert torch.equal(deltas[0], deltas[2])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_in_gives_the_same_out_whatever_happened_before(name):
    of = learner(batch_normed, OPTIMIZERS[name])
    start, data = of.initial(0), samples()
    first = train(of, start, data)
    train(of, start + 1, samples(30, seed=1), seed=9)
    of.evaluate(start - 1, data)
    torch.manual_seed(17)
    again = train(of, start, data)
    assert torch.equal(first.delta, again.delta)
    assert first.metrics == again.metrics
    assert not torch.equal(first.delta, train(of, start, data, seed=1).delta)
    assert torch.equal(first.delta, train(learner(batch_normed, OPTIMIZERS[name]), start, data).delta)


def test_the_number_of_threads_does_not_matter_and_comes_back():
    of = TorchLearner(lambda: nn.Linear(3000, 3), nn.CrossEntropyLoss())
    data = Samples(torch.randn(64, 3000), torch.randint(3, (64,)))
    seen, found = [], []
    handle = of._workspace.module.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            update = train(of, of.initial(0), data)
            found.append((update.delta.tolist(), of.evaluate(of.initial(0) + update.delta, data)))
            assert torch.get_num_threads() == threads
        with pytest.raises(ClientFailed):
            train(of, of.initial(0), Samples(torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)))
        assert torch.get_num_threads() == 2
    finally:
        handle.remove()
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert set(seen) == {1}


def test_the_global_generator_is_left_alone():
    of = learner(batch_normed)
    before = torch.get_rng_state()
    train(of, of.initial(4), samples())
    of.evaluate(of.initial(4), samples())
    assert torch.equal(before, torch.get_rng_state())


def test_training_changes_neither_start_nor_the_users_module_and_returns_new_memory():
    module = batch_normed()
    kept = copy.deepcopy(module.state_dict())
    of = learner(module)
    start = of.initial(0)
    copied = start.clone()
    update = train(of, start, samples())
    delta = update.delta.clone()
    train(of, start + 1, samples(seed=5))
    assert torch.equal(start, copied)
    assert torch.equal(update.delta, delta)
    assert all(torch.equal(kept[name], tensor) for name, tensor in module.state_dict().items())
    assert update.delta.dtype == torch.float32 and update.delta.is_contiguous()
    assert (update.weight, update.examples) == (1, 20)


def test_an_instance_is_the_initial_model_whatever_the_seed():
    module = mlp()
    of = learner(module)
    expected = Layout.of(module).gather(module)
    nn.init.zeros_(module[0].weight)  # later changes of the user's module are the user's own
    train(of, of.initial(0), samples())
    assert torch.equal(of.initial(0), expected)
    assert torch.equal(of.initial(1), expected)
    of.initial(2).zero_()
    assert torch.equal(of.initial(0), expected)


@given(st.integers(0, 2**66))
@settings(max_examples=20, deadline=None)
def test_a_callables_initial_model_depends_on_the_seed_and_nothing_else(seed):
    torch.manual_seed(1)
    first = learner(mlp).initial(seed)
    torch.manual_seed(2)
    of = learner(mlp)
    train(of, first, samples())
    assert torch.equal(of.initial(seed), first)
    assert not torch.equal(of.initial(seed + 2**32), first)


class Leaky(nn.Module):
    """Keeps state in every place that is not in the vector, and lets it change the output."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4, momentum=None)  # its average depends on num_batches_tracked
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)
        self.register_buffer("late", None)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.late is not None:
            inputs = inputs * 2
        if self.training:
            self.calls += 1
            self.scratch = self.scratch + inputs.detach().mean(0)
            self.late = torch.ones(1)
            self.mean = 0.5 * self.mean + 0.5 * inputs.detach().mean(0)
        return self.line(self.norm(inputs) * (1 + self.calls) + self.scratch)


def test_one_clients_state_never_leaks_to_another():
    of = learner(Leaky)
    start = of.initial(0)
    alone = train(of, start, samples(seed=1))
    for seed in range(3):
        train(of, start, samples(40, seed=seed + 2))
    assert torch.equal(train(of, start, samples(seed=1)).delta, alone.delta)
    assert of.evaluate(start, samples()) == learner(Leaky).evaluate(start, samples())


def test_floating_buffers_travel_in_the_vector_even_when_forward_replaces_them():
    of = learner(Leaky, batch_size=20)
    data = samples(20)
    views = of.layout.views(train(of, of.initial(0), data).delta)
    assert torch.allclose(views["mean"], 0.5 * data.inputs.mean(0), atol=1e-6)
    assert torch.allclose(views["norm.running_mean"], data.inputs.mean(0), atol=1e-6)


class Teacher(nn.Module):
    """Moves a frozen parameter while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(4, 3)
        self.teacher = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.teacher.add_(self.student.bias)
        return self.student(inputs)


def test_a_model_that_writes_its_frozen_parameters_is_told_to_use_a_buffer():
    of = learner(Teacher)
    with pytest.raises(ClientFailed, match=r"round 3: .*frozen parameter teacher; register it as a buffer"):
        train(of, of.initial(0), samples())


def test_frozen_parameters_stay_and_are_not_in_the_vector():
    module = mlp()
    module[0].requires_grad_(False)
    of = learner(module, OPTIMIZERS["momentum"])
    assert of.layout.length == 8 * 3 + 3
    train(of, of.initial(0), samples())
    assert torch.equal(of._workspace.module[0].weight, module[0].weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4, bias=False)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(inputs).tanh())


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_tied_weights_train_as_one(name):
    torch.set_num_threads(1)
    module, data = Tied(), samples(8)
    of = learner(module, OPTIMIZERS[name], batch_size=8)
    start = of.initial(0)
    update = train(of, start, data)
    rng = generator(0, "train")
    torch.randint(2**63 - 1, (), generator=rng)
    reference(module, OPTIMIZERS[name], data, rng, epochs=1, batch_size=8)
    assert of.layout.length == 16
    assert torch.equal(start + update.delta, Layout.of(module).gather(module))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_train_between_float32_vectors(dtype):
    of = learner(lambda: mlp().to(dtype), batch_size=20)
    start, data = of.initial(0), samples()
    data = Samples(data.inputs.to(dtype), data.targets)
    end = start + train(of, start, data).delta
    assert end.dtype == torch.float32
    assert torch.equal(end, end.to(dtype).float())
    assert of.evaluate(end, data)["loss"].value < of.evaluate(start, data)["loss"].value


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.used(inputs)


@pytest.mark.parametrize("task", [TASK, LocalTask(3, Proximal(0.1))])
def test_a_parameter_that_the_loss_does_not_use_stays(task):
    of = learner(Unused)
    delta = of.layout.views(train(of, of.initial(0), samples(), task=task).delta)
    assert not delta["spare.weight"].any() and delta["used.weight"].any()


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [
    (20, 8, [8, 8, 4]), (16, 8, [8, 8]), (17, 8, [8, 9]), (1, 8, [1]), (3, 1, [1, 1, 1]), (5, 9, [5]),
])  # fmt: skip
def test_every_example_is_seen_once_per_epoch_and_a_single_one_joins_the_batch_before(count, batch_size, sizes):
    of = learner(lambda: nn.Linear(1, 2), epochs=2, batch_size=batch_size)
    seen = []
    of._workspace.module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].flatten().tolist()))
    data = Samples(torch.arange(float(count)).view(-1, 1) / count, torch.zeros(count, dtype=torch.int64))
    train(of, of.initial(0), data)
    assert [len(batch) for batch in seen] == sizes * 2
    flat = [value for batch in seen for value in batch]
    for epoch in (flat[:count], flat[count:]):
        assert sorted(epoch) == data.inputs.flatten().tolist()
    assert count < 5 or flat[:count] != flat[count:]


def test_batch_norm_trains_with_one_example_left_over_but_not_on_one_alone():
    of = learner(batch_normed)
    train(of, of.initial(0), samples(17))
    with pytest.raises(ClientFailed, match="round 3, step 1: ValueError: Expected more than 1 value per channel"):
        train(of, of.initial(0), samples(1))


@pytest.mark.parametrize("eval_batch_size", [1, 7, 20, 1000])
def test_evaluation_is_the_metric_over_all_examples_and_switches_dropout_off(eval_batch_size):
    of = learner(batch_normed, metrics=[Accuracy()], eval_batch_size=eval_batch_size)
    model, data = of.initial(0), samples()
    module = batch_normed().eval()
    of.layout.scatter(model, module)
    outputs = module(data.inputs)
    found = of.evaluate(model, data)
    assert values(found) == pytest.approx({
        "loss": F.cross_entropy(outputs, data.targets).item(),
        "accuracy": (outputs.argmax(1) == data.targets).double().mean().item(),
    })  # fmt: skip
    assert found["accuracy"].count == found["loss"].count == 20


def test_clients_evaluations_add_up_to_the_evaluation_of_all_their_examples():
    of = learner(metrics=[Accuracy()])
    model, data = of.initial(0), samples(30)
    parts = [data.subset(range(5)), data.subset(range(5, 6)), data.subset(range(6, 30))]
    assert values(merge(of.evaluate(model, part) for part in parts)) == pytest.approx(values(of.evaluate(model, data)))


def test_nothing_to_evaluate_gives_no_metrics_and_nothing_to_train_on_fails():
    of = learner(metrics=[Accuracy()])
    nothing = samples().subset([])
    assert of.evaluate(of.initial(0), nothing) == {}
    with pytest.raises(ClientFailed, match="round 3: the data set is empty"):
        train(of, of.initial(0), nothing)


def test_any_torch_dataset_will_do():
    data = samples()
    of = learner()
    pairs = TorchDataset(torch.utils.data.TensorDataset(data.inputs, data.targets))
    assert torch.equal(train(of, of.initial(0), data).delta, train(of, of.initial(0), pairs).delta)


def test_a_loss_that_is_not_finite_fails_naming_round_and_step():
    data = samples()
    data.inputs[:] = float("inf")
    of = learner()
    with pytest.raises(ClientFailed, match=r"round 3, step 1: the loss is nan; lower the learning rate"):
        train(of, of.initial(0), data)
    of = learner(lambda: nn.Linear(4, 3), functools.partial(torch.optim.SGD, lr=3e38))
    with pytest.raises(ClientFailed, match=r"round 3, step [23]: the loss is"):
        train(of, of.initial(0), samples())


def test_a_result_that_is_not_finite_fails():
    of = TorchLearner(
        lambda: nn.Linear(4, 1), lambda outputs, _: outputs.mean() * 1e38, functools.partial(torch.optim.SGD, lr=1e9)
    )
    with pytest.raises(ClientFailed, match="round 3: the trained model is not finite"):
        train(of, torch.zeros(5), samples(8))


@pytest.mark.parametrize("make", [SGD, OPTIMIZERS["adam"]])
def test_a_failure_in_the_users_code_is_one_line_with_its_cause(make):
    of = learner(optimizer=make)
    wrong = Samples(torch.ones(8, 5), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ClientFailed, match="round 3, step 1: RuntimeError: mat1 and mat2 shapes") as failure:
        train(of, of.initial(0), wrong)
    assert isinstance(failure.value.__cause__, RuntimeError)
    assert "\n" not in str(failure.value)
    with pytest.raises(ClientFailed, match="evaluation: RuntimeError: mat1 and mat2 shapes"):
        of.evaluate(of.initial(0), wrong)
    assert torch.equal(  # and the next client is none the worse
        train(of, of.initial(0), samples()).delta, train(learner(optimizer=make), of.initial(0), samples()).delta
    )


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()])
def test_targets_that_would_broadcast_are_an_error(loss):
    of = TorchLearner(lambda: nn.Linear(4, 1), loss)
    data = Samples(torch.randn(8, 4), torch.rand(8))
    with pytest.raises(ClientFailed, match=r"[tT]arget size"):
        train(of, of.initial(0), data)
    with pytest.raises(ClientFailed, match=r"[tT]arget size"):
        of.evaluate(of.initial(0), data)
    train(of, of.initial(0), Samples(data.inputs, data.targets.view(-1, 1)))


def test_a_loss_that_is_no_scalar_is_an_error():
    of = TorchLearner(mlp, nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(ClientFailed, match=r"the loss is \[20\], not a scalar"):
        train(of, of.initial(0), samples())


def test_a_vector_of_another_length_is_refused():
    of = learner()
    for vector in (torch.zeros(1), torch.zeros(of.layout.length + 1), of.initial(0).double()):
        with pytest.raises(ValueError, match="expected float32"):
            train(of, vector, samples())


def fail():
    raise OSError("no weights here")


@pytest.mark.parametrize(("arguments", "cure"), [
    ({"epochs": 0}, "epochs is 0; give at least 1"),
    ({"batch_size": 0}, "batch_size is 0; give at least 1"),
    ({"eval_batch_size": -1}, "eval_batch_size is -1; give at least 1"),
    ({"optimizer": functools.partial(torch.optim.SGD, lr=-1)}, r"Invalid learning rate: -1.*give functools"),
    ({"optimizer": functools.partial(torch.optim.SGD, rate=1)}, r"unexpected keyword argument 'rate'.*give functools"),
    ({"optimizer": torch.optim.SGD(mlp().parameters(), lr=1)}, r"not callable.*give functools"),
    ({"optimizer": list}, "must make a torch.optim.Optimizer"),
    ({"metrics": [Accuracy(), Accuracy()]}, "give one of them another name"),
    ({"metrics": [Accuracy("loss")]}, "give one of them another name"),
    ({"model": fail}, "the model cannot be made .OSError: no weights here"),
    ({"model": 3}, "the model cannot be made"),
    ({"model": dict}, "it must make an nn.Module"),
    ({"model": nn.LazyLinear(3)}, "run one batch through the model first"),
    ({"model": nn.Linear(2, 2, device="meta")}, "weight is on meta; give the model on the CPU"),
    ({"model": nn.Linear(2, 2).double()}, r"\.float\(\)"),
    ({"model": nn.ReLU()}, "no trainable parameter"),
])  # fmt: skip
def test_what_cannot_work_is_refused_at_construction_with_the_cure(arguments, cure):
    with pytest.raises(AdmissionError, match=cure):
        TorchLearner(**{"model": mlp, "loss": nn.CrossEntropyLoss(), **arguments})


def test_a_model_whose_shapes_change_from_call_to_call_is_refused():
    sizes = iter([2, 3])
    of = learner(lambda: nn.Linear(next(sizes), 2))
    with pytest.raises(AdmissionError, match="same shapes each time"):
        of.initial(0)


def test_constructor_arguments_are_attributes():
    loss = nn.MSELoss()
    of = TorchLearner(mlp, loss, SGD, 2, 3, [MeanSquaredError()], 4)
    assert (of.model, of.loss, of.optimizer, of.epochs, of.batch_size, of.metrics, of.eval_batch_size) == (
        mlp, loss, SGD, 2, 3, (MeanSquaredError(),), 4,
    )  # fmt: skip
    assert TorchLearner(mlp, loss).optimizer.keywords == {"lr": 0.05}


def test_the_training_loss_weighs_batches_by_their_examples():
    of = TorchLearner(
        lambda: nn.Linear(1, 1), lambda outputs, targets: 0 * outputs.sum() + targets.mean(), batch_size=2
    )
    update = train(of, of.initial(0), Samples(torch.zeros(5, 1), torch.tensor([1.0, 2, 3, 4, 5])))
    assert update.metrics["train_loss"] == Ratio(15.0, 5.0)


@pytest.mark.parametrize("model", [mlp, batch_normed])
def test_a_learner_that_was_serialised_trains_the_same(model):
    given, data = learner(model), samples()
    start = given.initial(0)
    expected = train(given, start, data).delta
    copied = pickle.loads(pickle.dumps(given))
    assert torch.equal(train(copied, start, data).delta, expected)
    assert torch.equal(train(given, start, data).delta, expected)
