"""`TorchLearner`: local training of any `nn.Module` by any `torch.optim` optimizer, between flat vectors.

What comes out depends on the vector, the data and the generator that go in and on nothing else: not on the number
of threads, not on torch's global generator, not on what the module was trained on before.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import torch
from torch import nn

from koinon.core.descent import Descent, descent, plain_rate
from koinon.core.errors import AdmissionError, ClientFailed
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.rng import generator, integer
from koinon.core.statistics import Metrics, Ratio, Statistic, merge
from koinon.core.types import Update, Vector, finite
from koinon.data.dataset import Batch, Dataset
from koinon.learn.cohort import Unfit, alike, train_at_once
from koinon.learn.corrections import Correction
from koinon.learn.dense import Dense, dense_layers
from koinon.learn.dpsgd import DPSGD, PrivateGradients
from koinon.learn.guard import blamed, check_loss, line, not_finite, sealed
from koinon.learn.learner import LocalTask, Room
from koinon.learn.metrics import Metric
from koinon.learn.steps import Step, descending, optimized
from koinon.learn.workspace import Workspace, arranged
from koinon.privacy.events import Event

Loss: TypeAlias = Callable[[Any, Any], torch.Tensor]
"""(outputs, targets) -> their mean loss, a scalar: a torch loss module, or a function."""

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Parameters -> a fresh optimizer; `functools.partial` of any `torch.optim` class."""

BATCHED_LENGTH = 1 << 20
"""Parameters up to which clients are trained at once by default."""

_SGD: MakeOptimizer = functools.partial(torch.optim.SGD, lr=0.05)


@dataclass(frozen=True, eq=False)
class TorchLearner:
    """Trains a PyTorch module by mini-batches; a `koinon.learn.learner.Learner`.

    The learner has one module of its own, which every call uses again: two threads need two learners. Only
    parameters and buffers may carry state; buffers outside the vector (see `Layout`) start every call anew.
    Frozen parameters are the instance's own, or those that `model` makes under seed 0.

    Attributes:
        model: A module, whose present values are the initial model whatever the seed; or a callable without
            arguments that makes one, whose initial model depends on the seed.
        loss: Mean loss of (outputs, targets).
        optimizer: Makes the optimizer, anew for every training.
        epochs: Passes over the client's data, >= 1.
        batch_size: Examples per step, >= 1. The last batch may be smaller; a single example left over joins the
            batch before it, because BatchNorm cannot train on one.
        metrics: What `evaluate` measures besides the loss.
        eval_batch_size: Examples per forward pass of `evaluate`, >= 1.
        dp: How training protects each record, or None. With it, steps are as `DPSGD` says, `batch_size` is how many
            records' gradients are held at a time (each as large as the model; 64 and more are faster for convolutions),
            and nothing is told beside the update.
        batched: Whether a simulation trains clients at once: True, False, or None for where that was measured to be
            faster, which is for an `nn.Sequential` of linear layers and activations, cross entropy and plain SGD, up to
            `BATCHED_LENGTH` parameters. Updates then differ from those of one client after another by rounding.

    Raises:
        AdmissionError: if the model, the optimizer or a number cannot work.
    """

    model: nn.Module | Callable[[], nn.Module]
    loss: Loss
    optimizer: MakeOptimizer = _SGD
    epochs: int = 1
    batch_size: int = 32
    metrics: Sequence[Metric] = ()
    eval_batch_size: int = 1024
    dp: DPSGD | None = None
    batched: bool | None = None
    _workspace: Workspace = field(init=False, repr=False)
    _given: Vector | None = field(init=False, repr=False)
    _dense: Dense | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise AdmissionError(f"{name} is {getattr(self, name)}; give at least 1")
        names = ["loss", *(metric.name for metric in self.metrics)]
        if len(set(names)) < len(names):
            raise AdmissionError(f"two metrics have one name among {', '.join(names)}; give one of them another name")
        given = isinstance(self.model, nn.Module)
        module = copy.deepcopy(self.model) if isinstance(self.model, nn.Module) else _make(self.model, 0)
        workspace = Workspace(arranged(module) if self.dp is None else module)
        object.__setattr__(self, "metrics", tuple(self.metrics))
        object.__setattr__(self, "_workspace", workspace)
        object.__setattr__(self, "_given", workspace.layout.gather(workspace.module) if given else None)
        if not workspace.parameters:
            raise AdmissionError("the model has no parameter that requires a gradient; there is nothing to train")
        optimizer = self._make_optimizer() if plain_rate(self.optimizer) is None else None
        if self.dp is not None:
            self.dp.admit(workspace.module, workspace.layout, self.loss, optimizer)
        object.__setattr__(self, "_dense", self._make_dense())

    @property
    def layout(self) -> Layout:
        """Which part of the vector is which tensor."""
        return self._workspace.layout

    @property
    def descent(self) -> Descent | None:
        """Learning rate and momentum of plain or heavy-ball SGD; None of another optimizer."""
        return descent(self.optimizer) if self.dp is None else None

    def steps(self, examples: int) -> int:
        """Steps of a training on so many examples, without `dp`."""
        left_over = examples % self.batch_size == 1 < min(self.batch_size, examples)
        return self.epochs * (-(-examples // self.batch_size) - left_over)

    def release(self) -> Event | None:
        """What one training releases about each record, or None where nothing protects it."""
        return None if self.dp is None else self.dp.release(self.epochs)

    @property
    def statistics(self) -> Metrics:
        """Of no examples: all that `train` and `evaluate` tell and that can be added up secretly."""
        if self.dp is not None:
            return {}
        zeros = {metric.name: metric.zero for metric in self.metrics if hasattr(metric, "zero")}
        return {"train_loss": Ratio(0.0, 0.0), "loss": Ratio(0.0, 0.0), **zeros}

    def described(self) -> dict[str, object]:
        """What it is, for the definition's digest: its arguments, and the module that `model` makes."""
        arguments = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        return {**arguments, "module": self._workspace.module}

    def initial(self, seed: int) -> Vector:
        """The model before training, float32 `[D]`; equal seeds give equal bits.

        Raises:
            AdmissionError: if `model` is a callable that makes other shapes from one call to the next.
        """
        if self._given is not None:
            return self._given.clone()
        module = _make(self.model, seed)
        if Layout.of(module) != self.layout:
            raise AdmissionError("the model's tensors differ from one call to the next; make the same shapes each time")
        return self.layout.gather(module)

    def train(self, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """Train from `start`, which is not changed, on shuffled mini-batches or as `dp` says; see `Learner.train`.

        Returns:
            Trained model minus `start`, and `train_loss`: the mean over all steps' examples. With `dp` only the former,
            and an example count of 1.
        """
        if len(data) == 0:
            raise ClientFailed(f"round {task.round}: the data set is empty, there is nothing to train on")
        workspace = self._workspace
        workspace.load(start)
        workspace.module.train()
        # With dp not even dropout may follow the public generator: a record shifts what is drawn for those after it,
        # and only who cannot know the draws cannot tell.
        layers = generator(integer(rng), "layers") if self.dp is None else _secret(task).of("layers").generator()
        with sealed(layers), torch.enable_grad():
            step = self._step(task.correction, start)
            if self.dp is None:
                examples, metrics = self._descend(step, data, task, rng)
            else:
                examples, metrics = self._descend_privately(self.dp, step, data, task)
            with blamed(f"round {task.round}"):
                delta = workspace.read() - start
        if not finite(delta):
            raise not_finite(task.round)
        return Update.of(delta, examples, metrics)

    @property
    def together(self) -> bool:
        """Whether `train_cohort` trains clients at once."""
        return self._dense is not None

    def train_cohort(
        self,
        start: Vector,
        datas: Sequence[Dataset],
        tasks: Sequence[LocalTask],
        rngs: Sequence[torch.Generator],
        room: Room = torch.empty,
    ) -> list[Update | ClientFailed]:
        """What `train` would make of each of these clients, up to rounding; failures are returned, not raised.

        Clients with equally many examples are trained at once where `batched` says so and nothing corrects gradients.
        """
        made: dict[int, Update | ClientFailed] = {}
        rate = plain_rate(self.optimizer)
        for places in alike(datas):
            own, drawn = [datas[place] for place in places], [rngs[place] for place in places]
            states = [rng.get_state() for rng in drawn]
            try:
                if self._dense is None or rate is None or not len(own[0]) or tasks[places[0]].correction is not None:
                    raise Unfit
                round = tasks[places[0]].round
                out = room(len(own), self.layout.length)
                updates = train_at_once(self._dense, start, own, drawn, self._batches, rate, round, out)
            except Unfit:
                for rng, state in zip(drawn, states, strict=True):
                    rng.set_state(state)
                updates = [self._alone(start, datas[place], tasks[place], rngs[place]) for place in places]
            made |= dict(zip(places, updates, strict=True))
        return [made[place] for place in range(len(datas))]

    def evaluate(self, model: Vector, data: Dataset) -> Metrics:
        """`loss` and every metric of `model` on `data`; nothing without examples.

        Raises:
            ClientFailed: if the module, the loss or a metric fails.
        """
        self._workspace.load(model)
        module = self._workspace.module.eval()
        found: dict[str, Statistic] = {}
        with sealed(generator(0, "evaluate")), torch.inference_mode(), blamed("evaluation"):
            for indices in _split(torch.arange(len(data)), self.eval_batch_size):
                inputs, targets = data.batch(indices)
                outputs = module(inputs)
                mean = self._mean_loss(outputs, targets).item()
                batch: dict[str, Statistic] = {"loss": Ratio(mean * len(indices), float(len(indices)))}
                batch.update((metric.name, metric.measure(outputs, targets)) for metric in self.metrics)
                found = merge((found, batch))
        return found

    def _descend(self, step: Step, data: Dataset, task: LocalTask, rng: torch.Generator) -> tuple[int, Metrics]:
        """Every step of a training; what may be told of it: how many examples, and the mean loss."""
        total = 0.0
        for number, indices in enumerate(self._batches(len(data), rng), start=1):
            with blamed(f"round {task.round}, step {number}"):
                loss = step(functools.partial(self._differentiate, data.batch(indices)))
            check_loss(loss, task.round, number)
            total += loss * len(indices)
        return len(data), {"train_loss": Ratio(total, float(len(data) * self.epochs))}

    def _descend_privately(self, dp: DPSGD, step: Step, data: Dataset, task: LocalTask) -> tuple[int, Metrics]:
        """Every step of a training with `dp`; nothing may be told of it."""
        private = PrivateGradients(dp, self._workspace, self._mean_loss, self.batch_size)
        for number in range(1, dp.steps(self.epochs) + 1):
            with blamed(f"round {task.round}, step {number}"):
                gradient = private.draw(data, _secret(task).of("step", number))
                step(functools.partial(self._place, gradient))  # drawn once, however often the optimizer asks
        return 1, {}

    def _differentiate(self, batch: Batch) -> float:
        """The source of gradients of a step on one batch."""
        inputs, targets = batch
        loss = self._mean_loss(self._workspace.module(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _place(self, gradient: Vector) -> float:
        """The source of gradients of a step for which they were drawn before."""
        views = self.layout.views(gradient)
        for slot, parameter in zip(self.layout.slots, self._workspace.parameters, strict=True):
            parameter.grad = views[slot.name].to(slot.dtype, copy=True)
        return math.nan

    def _mean_loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        return _scalar(self.loss(outputs, targets))

    def _batches(self, count: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
        """Every epoch's indices in an order of its own, batch by batch."""
        for _ in range(self.epochs):
            batches = _split(torch.randperm(count, generator=rng), self.batch_size)
            if len(batches) > 1 and len(batches[-1]) == 1 < self.batch_size:
                batches = [*batches[:-2], torch.cat(batches[-2:])]
            yield from batches

    def _alone(self, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update | ClientFailed:
        try:
            return self.train(start, data, task, rng)
        except ClientFailed as failure:
            return failure

    def _make_dense(self) -> Dense | None:
        """What trains clients at once, or None."""
        layout, module = self.layout, self._workspace.module
        layers = dense_layers(module, layout, self.loss)
        fits = bool(layers) and plain_rate(self.optimizer) is not None and self.dp is None
        if self.batched and not fits:
            raise AdmissionError(
                "this model cannot be trained in batches of clients: that needs an nn.Sequential of Linear, ReLU, Tanh and "
                "Sigmoid, cross entropy and plain SGD without dp; leave out batched=True"
            )
        wanted = layout.length <= BATCHED_LENGTH if self.batched is None else self.batched
        return Dense(layers, isinstance(next(module.children()), nn.Flatten)) if fits and wanted else None

    def _make_optimizer(self) -> torch.optim.Optimizer:
        try:
            made = self.optimizer(self._workspace.parameters)
        except Exception as error:
            raise AdmissionError(
                f"the optimizer cannot be made ({line(error)}); give functools.partial(torch.optim.SGD, lr=0.05) "
                "or the like"
            ) from error
        if not isinstance(made, torch.optim.Optimizer):
            raise AdmissionError(f"optimizer made a {type(made).__name__}; it must make a torch.optim.Optimizer")
        return made

    def _step(self, correction: Correction | None, start: Vector) -> Step:
        parameters = self._workspace.parameters
        if correction is None:
            rate = plain_rate(self.optimizer)
            return optimized(self._make_optimizer(), lambda: None) if rate is None else descending(parameters, rate)
        views = self.layout.views(start)
        starts = [views[slot.name].to(slot.dtype) for slot in self.layout.slots if slot.trainable]

        def correct() -> None:
            for parameter in parameters:
                if parameter.grad is None:  # unused in this step; a correction pulls at it all the same
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            correction.correct(gradients, [parameter.detach() for parameter in parameters], starts)

        return optimized(self._make_optimizer(), correct)


def _make(model: Any, seed: int) -> nn.Module:
    with sealed(generator(seed, "initial")):
        try:
            module = model()
        except Exception as error:
            raise AdmissionError(
                f"the model cannot be made ({line(error)}); give a module, or what makes one"
            ) from error
    if not isinstance(module, nn.Module):
        raise AdmissionError(f"model made a {type(module).__name__}; it must make an nn.Module")
    return module


def _secret(task: LocalTask) -> Noise:
    if task.noise is None:
        raise ClientFailed(f"round {task.round}: training with dp needs secret noise; give LocalTask(..., noise=...)")
    return task.noise


def _split(indices: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _scalar(loss: torch.Tensor) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        shape = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ClientFailed(f"the loss is {shape}, not a scalar; let it return the mean over the batch")
    return loss
