"""What turns many updates into one.

A round's updates are a matrix `[n, D]`, one row for each client in canonical order. It need not be in memory:
`Rows` gives it by column blocks, from files or from a tensor, as often as a rule wants to pass over it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from koinon.core.types import ClientId, Spec, Vector

State: TypeAlias = Any

Memory: TypeAlias = Mapping[str, torch.Tensor]
"""What a rule keeps from round to round, by name, so that it can be saved with the run."""


class Rows(Protocol):
    """The updates of a round."""

    @property
    def length(self) -> int:
        """D, the number of columns."""

    @property
    def weights(self) -> Sequence[float]:
        """One weight for each row, >= 0."""

    def columns(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Columns `start .. stop` of each row in turn; float32 `[stop - start]`, not to be changed."""


@dataclass(frozen=True)
class Matrix:
    """Updates in memory: float32 `[n, D]`."""

    updates: torch.Tensor
    weights: Sequence[float]

    @property
    def length(self) -> int:
        """D, the number of columns."""
        return self.updates.shape[1]

    def columns(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Views of each row in turn."""
        return iter(self.updates[:, start:stop])


class Reducer(Protocol):
    """A rule for many updates to one."""

    def admit(self, spec: Spec) -> None:
        """Refuse updates that the rule cannot work on.

        Raises:
            AdmissionError: with the cure, e.g. when the rule must see each update and only their sum is visible.
        """

    def reduce(self, rows: Rows) -> Vector:
        """One update of all; float32 `[D]`.

        Raises:
            ValueError: if there are too few rows for the rule.
        """


@dataclass(frozen=True)
class Round:
    """What a rule may know of a round besides its updates.

    Attributes:
        number: From 1.
        clients: Whose update each row is.
        rng: Draws that others may know, since they follow from the run's seed.
        root: The update that the server makes by itself from the rule's `root` data; None where it has none.
    """

    number: int
    clients: tuple[ClientId, ...]
    rng: torch.Generator
    root: Vector | None = None


@runtime_checkable
class Contextual(Reducer, Protocol):
    """A rule that remembers earlier rounds, draws, or asks whose update is whose."""

    def start(self, length: int) -> Memory:
        """The memory before the first round; names without slashes."""

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The next memory, and one update of all; float32 `[D]`.

        Raises:
            ValueError: if there are too few rows for the rule.
        """


@runtime_checkable
class Watching(Contextual, Protocol):
    """A rule that says whom it suspects."""

    def report(self, memory: Memory) -> Mapping[ClientId, Mapping[str, float]]:
        """What is known of each client, by name."""


@runtime_checkable
class Deciding(Contextual, Protocol):
    """A rule that decides anew in every round, and says what and why."""

    def note(self, memory: Memory) -> str:
        """In one line, for the round's record."""


def reduced(reducer: Reducer, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
    """A round by any rule: the next memory, and one update of all."""
    if isinstance(reducer, Contextual):
        return reducer.reduce_round(memory, rows, round)
    return memory, reducer.reduce(rows)


def block(rows: Rows, start: int, stop: int) -> torch.Tensor:
    """Columns `start .. stop` of all rows at once; float32 `[n, stop - start]`, not to be changed."""
    return rows.updates[:, start:stop] if isinstance(rows, Matrix) else torch.stack(list(rows.columns(start, stop)))


@runtime_checkable
class Summing(Reducer, Protocol):
    """A rule that needs only a sum, so that updates can be added as they come and forgotten.

    Adding rows one by one in canonical order gives the same bits as `reduce`.
    """

    def init(self, length: int) -> State:
        """Nothing added yet."""

    def add(self, state: State, row: Vector, weight: float) -> State:
        """One more update; `state` is consumed."""

    def finish(self, state: State) -> Vector:
        """The result; `state` is consumed."""
