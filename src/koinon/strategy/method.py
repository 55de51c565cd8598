"""What an algorithm makes of local training: a learner around a learner, so that every runtime runs it as any other.

A method may have something travel beside the model, down and up: more coordinates of the one vector that stages, codecs
and secure sums know. And it may keep something on the client, which lies with the client's other memories.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Protocol, TypeAlias

import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.descent import Descent
from koinon.core.errors import AdmissionError, ClientFailed
from koinon.core.layout import Layout, Slot
from koinon.core.statistics import Metrics
from koinon.core.types import Spec, Update, Vector
from koinon.data.dataset import Dataset
from koinon.learn.corrections import Memory
from koinon.learn.learner import Learner, LocalTask, Stepping, judged
from koinon.update.codec import Codec
from koinon.update.stage import Chain, OnServer
from koinon.update.weight import Weight

Beside: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of what travels beside the model; it begins with zeros."""


class Method(Protocol):
    """What an algorithm makes of local training."""

    def fit(self, stages: Chain, spec: Spec, codec: Codec, reducer: Reducer) -> None:
        """Raise AdmissionError, with the cure, if what travels does not survive its way.

        Args:
            stages: Of the whole way.
            spec: What is known of an update at its end.
            codec: How it becomes bytes.
            reducer: How many become one.
        """

    def check(self, learner: Learner) -> None:
        """Raise AdmissionError, with the cure, if the learner cannot be trained so."""

    def beside(self, layout: Layout) -> Beside:
        """What travels beside a model of this layout."""

    def keeps(self, layout: Layout) -> int:
        """Bytes that a client keeps from one of its rounds to the next."""

    def train(self, learner: Learner, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """As `Learner.train`, of a vector `[D + beside]`; `learner` knows the model alone, `[D]`."""

    def own(self, model: Vector, memory: Memory) -> Vector:
        """The model by which a client judges itself when it is given `model`, float32 `[D]`."""


class Plain:
    """Base of methods that keep nothing, and whose clients judge the model that they are given."""

    def keeps(self, layout: Layout) -> int:
        """Nothing."""
        return 0

    def own(self, model: Vector, memory: Memory) -> Vector:
        """The model that was given."""
        return model


@dataclass(frozen=True)
class Extended:
    """A learner as a method makes use of it; a `koinon.learn.learner.Keeping`.

    Attributes:
        within: The learner of the model alone.
        method: What is made of it.

    Raises:
        AdmissionError: if they do not fit, or the learner protects records, for whom only its own training is accounted.
    """

    within: Learner
    method: Method

    def __post_init__(self) -> None:
        name = type(self.method).__name__
        if getattr(self.within, "release", lambda: None)() is not None:
            raise AdmissionError(
                f"{name} tells more than the update whose privacy DPSGD accounts for; leave dp= out, or take fedavg()"
            )
        self.method.check(self.within)

    @cached_property
    def layout(self) -> Layout:
        """The model's, and behind it what travels beside."""
        own = self.within.layout
        beside = self.method.beside(own)
        starts = accumulate((prod(shape) for _, shape in beside), initial=own.length)
        slots = [
            Slot(name, shape, torch.float32, start, False, True)
            for (name, shape), start in zip(beside, starts, strict=False)
        ]
        return Layout((*own.slots, *slots), own.aliases)

    @property
    def statistics(self) -> Metrics:
        """Those of the learner."""
        return getattr(self.within, "statistics", {})

    @property
    def keeps(self) -> int:
        """What the method keeps, and the learner."""
        return self.method.keeps(self.within.layout) + getattr(self.within, "keeps", 0)

    def initial(self, seed: int) -> Vector:
        """The learner's, and zeros."""
        first = self.within.initial(seed)
        return torch.cat((first, torch.zeros(self.layout.length - len(first))))

    def train(self, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """By the method."""
        return self.method.train(self.within, start, data, task, rng)

    def evaluate(self, model: Vector, data: Dataset) -> Metrics:
        """Of the model alone."""
        return self.within.evaluate(model[: self.within.layout.length], data)

    def evaluate_own(self, model: Vector, data: Dataset, memory: Memory) -> Metrics:
        """Of the model by which the client judges itself."""
        own = self.method.own(model[: self.within.layout.length], memory)
        return judged(self.within, own, data, memory)


def extended(learner: Learner, method: Method | None) -> Learner:
    """The learner with this method, and with no other that it had before."""
    within = learner.within if isinstance(learner, Extended) else learner
    return within if method is None else Extended(within, method)


def stepping(learner: Learner, name: str) -> tuple[Stepping, Descent]:
    """The learner and how it goes down.

    Raises:
        AdmissionError: if it does not say.
    """
    if not isinstance(learner, Stepping) or learner.descent is None:
        raise AdmissionError(
            f"{name} must know the local learning rate and count the steps; give a TorchLearner with optimizer="
            "functools.partial(torch.optim.SGD, lr=…)"
        )
    return learner, learner.descent


def fit_number(what: str, stages: Chain, codec: Codec) -> None:
    """Whether one number beside the model arrives exactly.

    Raises:
        AdmissionError: naming the cure.
    """
    for stage in stages.stages:
        if not isinstance(stage, Weight | OnServer):
            raise AdmissionError(
                f"{type(stage).__name__} would change {what}, which travels beside the update; leave it out, or take fedavg()"
            )
    if codec.claims.kept < 1 or codec.claims.variance > 0:
        raise AdmissionError(
            f"{type(codec).__name__} would lose {what}, which travels beside the update; use Float32() or Zstd(Float32())"
        )


def fit_sum(what: str, reducer: Reducer) -> None:
    """Whether updates are added up with the number beside them.

    Raises:
        AdmissionError: naming the cure.
    """
    if not isinstance(reducer, Mean):
        raise AdmissionError(
            f"{type(reducer).__name__} would weigh {what} against the model's weights; leave reducer= out, or take "
            "fedavg(reducer=…)"
        )


def loss_of(learner: Learner, model: Vector, data: Dataset, task: LocalTask) -> float:
    """The mean loss of a model on a client's training data.

    Raises:
        ClientFailed: if the learner does not measure it, or it is not finite.
    """
    loss = judged(learner, model, data, task.memory).get("loss")
    if loss is None or not math.isfinite(loss.value):
        raise ClientFailed(
            f"round {task.round}: the learner's evaluation gives no finite loss, by which clients are weighed"
        )
    return loss.value


def scale(layout: Layout, delta: Vector, factor: float) -> None:
    """Multiply what is trained by a factor, in place; running statistics (BatchNorm's) are left for their mean."""
    for slot in layout.slots:
        if slot.trainable:
            delta[slot.start : slot.stop] *= factor
