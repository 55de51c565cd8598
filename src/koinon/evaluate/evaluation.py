"""Who evaluates a model, on what, and when: the server on its own test set, nodes on their held-out parts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from koinon.core.errors import AdmissionError
from koinon.core.statistics import Metrics
from koinon.core.types import Vector
from koinon.data.dataset import DataSet, Dataset
from koinon.evaluate.stopping import Course, EarlyStopping
from koinon.learn.corrections import Memory
from koinon.learn.learner import Learner, judged

TRAINING = "train_"
"""Prefix of the names of metrics of local training."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a federation's models are evaluated.

    Attributes:
        test: The server's test set, or a callable without arguments that loads it, so that nodes never do. Of a
            `DataSet` with a test part, that part. None: the server evaluates nothing.
        every: Rounds between the server's evaluations, >= 1; the last round is always evaluated.
        federated: Whether nodes evaluate the model that they receive on their own held-out data.
        stop: When the server's evaluations end the run before its last round; None: never.

    Raises:
        AdmissionError: if `test` is no data set, `every` is less than 1, or there is `stop` without `test`.
    """

    test: object | Callable[[], object] | None = None
    every: int = 1
    federated: bool = True
    stop: EarlyStopping | None = None

    def __post_init__(self) -> None:
        if self.stop is not None and self.test is None:
            raise AdmissionError("early stopping goes by the server's evaluations; give a test set beside stop=")
        if self.every < 1:
            raise AdmissionError(f"every is {self.every} rounds; give at least 1")
        if self.test is not None and not callable(self.test):
            DataSet.of(self.test)

    def due(self, round: int, rounds: int) -> bool:
        """Whether the server evaluates after this round of so many."""
        return self.test is not None and (round % self.every == 0 or round == rounds)

    def course(self, rounds: int, measured: Iterable[tuple[int, Mapping[str, float]]]) -> Course:
        """The server's evaluations of a run of so many rounds.

        Args:
            measured: Rounds, and the metrics in their records; those of rounds that the server does not evaluate are nodes'.
        """
        return Course(self.stop, {round: metrics for round, metrics in measured if self.due(round, rounds)})

    @cached_property
    def examples(self) -> Dataset:
        """The server's test examples, loaded when first asked for; only where there is a `test`."""
        held = DataSet.of(self.test() if callable(self.test) else self.test)
        return held.train if held.test is None else held.test


def central(learner: Learner, evaluation: Evaluation, model: Vector, round: int, rounds: int) -> Metrics | None:
    """Statistics of the model after `round` on the server's test set; None when no evaluation is due."""
    return learner.evaluate(model, evaluation.examples) if evaluation.due(round, rounds) else None


def on_client(learner: Learner, model: Vector, data: DataSet, memory: Memory) -> Metrics:
    """Statistics of the model on a client's held-out part, given what its learner keeps; nothing if it has no such part."""
    return {} if data.test is None else judged(learner, model, data.test, memory)


def of_training(metrics: Metrics) -> Metrics:
    """Of what a client tells, what is of its training; without the prefix."""
    return {name.removeprefix(TRAINING): value for name, value in metrics.items() if name.startswith(TRAINING)}


def of_evaluation(metrics: Metrics) -> Metrics:
    """Of what a client tells, what is of the model that it received."""
    return {name: value for name, value in metrics.items() if not name.startswith(TRAINING)}
