"""The Learner protocol: all that the rest of Koinon knows about a model and its training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from koinon.core.descent import Descent
from koinon.core.errors import ClientFailed
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.statistics import Metrics
from koinon.core.types import Update, Vector
from koinon.data.dataset import Dataset
from koinon.learn.corrections import Correction, Memory

Room: TypeAlias = Callable[[int, int], torch.Tensor]
"""Number of clients and D -> memory for so many deltas, float32 `[clients, D]`."""


@dataclass(frozen=True, slots=True)
class LocalTask:
    """What a round asks of local training beyond the learner's own settings.

    Attributes:
        round: Round number, from 1.
        correction: What the strategy adds to every local gradient, or None.
        noise: The client's secret noise for this round's training and for nothing else; needed by a learner that
            protects records.
        memory: What the learner kept after this client's last training; empty before its first.
    """

    round: int
    correction: Correction | None = None
    noise: Noise | None = None
    memory: Memory = field(default_factory=dict)


class Learner(Protocol):
    """A model that can be trained somewhere else: three functions between flat vectors.

    A learner that protects each record by noise has one method more: `release()`, the event (`koinon.privacy.events`)
    of one call of `train`, or None where nothing protects them. One that has `statistics`, zeros of all that `train` and
    `evaluate` tell, has them added up with the updates where those are added up secretly; otherwise nothing is told there.
    """

    @property
    def layout(self) -> Layout:
        """Which part of the vector is which tensor."""

    def initial(self, seed: int) -> Vector:
        """The model before training, float32 `[D]`; equal seeds give equal bits."""

    def train(self, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """Train from `start` on `data`; every draw comes from `rng`. `start` is not changed.

        Raises:
            ClientFailed: if there is nothing to train on, or the loss or the result is not finite.
        """

    def evaluate(self, model: Vector, data: Dataset) -> Metrics:
        """Additive statistics of `model` on `data`."""


@runtime_checkable
class Stepping(Learner, Protocol):
    """A learner that says how it goes down, for algorithms that count local steps."""

    @property
    def descent(self) -> Descent | None:
        """Learning rate and momentum; None where it goes by more than those."""

    def steps(self, examples: int) -> int:
        """Steps of a training on so many examples."""


@runtime_checkable
class Keeping(Learner, Protocol):
    """A learner that keeps something of its own on every client: a task's `memory`, and after it the update's.

    It lies beside the node's journal, or in a simulation's checkpoint. If the server refuses an update, it goes back to
    what it was before the round.
    """

    @property
    def keeps(self) -> int:
        """Bytes of a memory."""

    def evaluate_own(self, model: Vector, data: Dataset, memory: Memory) -> Metrics:
        """Additive statistics on `data` of what the client makes of `model`; `memory` is empty before its first round."""


def judged(learner: Learner, model: Vector, data: Dataset, memory: Memory) -> Metrics:
    """A client's statistics of a model on some of its data, given what its learner keeps."""
    return learner.evaluate_own(model, data, memory) if isinstance(learner, Keeping) else learner.evaluate(model, data)


@runtime_checkable
class CohortLearner(Learner, Protocol):
    """A learner that can train several clients at once, which a simulation makes use of."""

    @property
    def together(self) -> bool:
        """Whether it does."""

    def train_cohort(
        self,
        start: Vector,
        datas: Sequence[Dataset],
        tasks: Sequence[LocalTask],
        rngs: Sequence[torch.Generator],
        room: Room = torch.empty,
    ) -> Sequence[Update | ClientFailed]:
        """What `train` would make of each of these clients, up to rounding: to 1e-5 of the update's norm.

        Failures are returned, not raised; a delta that is not finite may be returned as well. The results may depend on
        who is trained together, so whoever calls this must see to it that those are the same whenever the bits are to be.

        Args:
            room: Gives memory for deltas that need not be copied any more: worker processes share it.
        """
