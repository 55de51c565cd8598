"""Ditto: beside the model of all, every client trains one of its own, which is held near the other and never sent."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Spec, Update, Vector
from koinon.data.dataset import Dataset
from koinon.learn.corrections import Memory
from koinon.learn.learner import Keeping, Learner, LocalTask
from koinon.secure.secure_sum import SecureSum
from koinon.server.optimizer import MakeServerOptimizer, ServerOptimizer
from koinon.server.sampling import Everyone, Sampler
from koinon.strategy.method import Beside
from koinon.strategy.strategy import Strategy
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain, Stage
from koinon.update.weight import Weight


def ditto(
    lam: float = 0.1,
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = (Weight(),),
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(torch.optim.SGD, lr=1.0),
) -> Strategy:
    """Ditto: FedAvg, and on every client a model of its own, trained with lam/2 · |v - w|² added to its loss.

    The own model never leaves the client, so everything that protects updates works as in FedAvg. A node's metrics are
    those of its own model; the server's evaluation is of the model of all. A round takes twice FedAvg's training.

    Source: Li et al., "Ditto: fair and robust federated learning through personalization" (2021), algorithm 1.

    Args:
        lam: How strongly the own model is held near the model of all, >= 0; 0 is training alone, 0.01 to 2 is usual.

    Raises:
        AdmissionError: if lam is out of its bounds.
    """
    method = PersonalModels(lam)
    chain = Chain(tuple(stages))
    return Strategy(
        "ditto", sample, chain, codec, reducer, ServerOptimizer(server), downlink=downlink, secure=secure, method=method
    )


@dataclass(frozen=True)
class PersonalModels:
    """A client's side of Ditto; the server does as in FedAvg.

    Attributes:
        lam: Strength of the pull to the model of all, >= 0.

    Raises:
        AdmissionError: if it is negative or not finite.
    """

    lam: float

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise AdmissionError(f"Ditto needs a finite lam >= 0, not {self.lam}; 0.01 to 2 is usual")

    def fit(self, stages: Chain, spec: Spec, codec: Codec, reducer: Reducer) -> None:
        """Nothing travels beside the model."""

    def check(self, learner: Learner) -> None:
        """The learner must be of one model."""
        if isinstance(learner, Keeping):
            raise AdmissionError(
                f"Ditto keeps a whole model on every client, and {type(learner).__name__} a part of one; take one of the two"
            )

    def beside(self, layout: Layout) -> Beside:
        """Nothing."""
        return ()

    def keeps(self, layout: Layout) -> int:
        """The own model."""
        return 4 * layout.length

    def train(self, learner: Learner, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """FedAvg's update, then as many steps of the own model, which begins as the first model that the client is given."""
        update = learner.train(start, data, task, rng)
        own = self.own(start, task.memory)
        views = learner.layout.views(start)
        pull = Toward(self.lam, [views[slot.name].to(slot.dtype) for slot in learner.layout.slots if slot.trainable])
        moved = learner.train(own, data, replace(task, correction=pull), rng).delta
        return replace(update, memory={"model": own + moved})

    def own(self, model: Vector, memory: Memory) -> Vector:
        """The client's own model; before its first training, the model of all."""
        return memory.get("model", model)


@dataclass(frozen=True)
class Toward:
    """Adds lam · (v - w) to every gradient.

    Attributes:
        lam: Strength, >= 0.
        model: w, for each parameter.
    """

    lam: float
    model: Sequence[torch.Tensor]

    def correct(
        self, gradients: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], start: Sequence[torch.Tensor]
    ) -> None:
        """Add it, in place."""
        away = torch._foreach_sub(list(parameters), list(self.model))
        torch._foreach_add_(list(gradients), away, alpha=self.lam)
