"""What robust rules have in common: they see each update, say how many liars they bear, and can be called on a tensor."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from koinon.aggregate.reducer import Contextual, Matrix, Memory, Reducer, Round, Rows
from koinon.core.errors import AdmissionError
from koinon.core.rng import generator
from koinon.core.types import Spec, Vector, finite


class Rule(ABC):
    """Base of robust rules. Every update counts alike: what a client says of its own weight is not asked."""

    @property
    @abstractmethod
    def least(self) -> int:
        """Updates without which the rule makes no sense, >= 1."""

    @abstractmethod
    def tolerates(self, updates: int) -> int:
        """How many of so many updates may be lies."""

    @abstractmethod
    def reduce(self, rows: Rows) -> Vector:
        """One update of all; float32 `[D]`.

        Raises:
            ValueError: if there are too few rows.
        """

    def admit(self, spec: Spec) -> None:
        """Refuse sums of which no part can be seen, and cohorts that are too small."""
        name = type(self).__name__
        if not spec.visible:
            raise AdmissionError(
                f"{name} must see each update, and only their sum is visible; use Mean(), or SecureSum(group_size=…), which shows "
                "the sums of groups"
            )
        if spec.cohort is not None and spec.cohort < self.least:
            raise AdmissionError(
                f"{name} needs {self.least} updates in a round, and there are {spec.cohort:g}; sample more"
            )

    def __call__(self, updates: torch.Tensor) -> Vector:
        """The rule on the rows of a float32 tensor `[n, D]`.

        Raises:
            ValueError: if there are too few rows, or one has a value that is not finite.
        """
        doubtful = torch.nonzero(~updates.sum(1).isfinite()).flatten().tolist()  # a sum can overflow by itself
        lost = [row for row in doubtful if not finite(updates[row])]
        if lost:
            raise ValueError(f"rows {', '.join(map(str, lost))} have values that are not finite; leave them out")
        return self.reduce(Matrix(updates, [1.0] * len(updates)))

    def check(self, updates: int) -> None:
        """Raise ValueError if there are too few updates."""
        if updates < self.least:
            raise ValueError(f"{type(self).__name__} needs at least {self.least} updates, not {updates}")


class Majority(Rule):
    """Base of rules that bear anything as long as more than half are honest."""

    @property
    def least(self) -> int:
        """1."""
        return 1

    def tolerates(self, updates: int) -> int:
        """Fewer than half."""
        return (updates - 1) // 2


class ContextualRule(Rule):
    """Base of robust rules that are `Contextual`; called on a tensor they take it for a first round."""

    def start(self, length: int) -> Memory:
        """Nothing remembered."""
        return {}

    @abstractmethod
    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """As in `Contextual`."""

    def reduce(self, rows: Rows) -> Vector:
        """As a first round, with draws of seed 0."""
        clients = tuple(str(number) for number in range(len(rows.weights)))
        return self.reduce_round(self.start(rows.length), rows, Round(1, clients, generator(0, "aggregate")))[1]


@dataclass(frozen=True)
class Tolerant(Rule):
    """Base of rules for up to f liars.

    Attributes:
        f: Liars that a round may have, >= 0.

    Raises:
        AdmissionError: if f is negative or no whole number.
    """

    f: int

    def __post_init__(self) -> None:
        if not isinstance(self.f, int) or self.f < 0:
            raise AdmissionError(f"{type(self).__name__} needs a number of liars >= 0, not {self.f}")

    @property
    def least(self) -> int:
        """More honest updates than lies."""
        return 2 * self.f + 1

    def tolerates(self, updates: int) -> int:
        """f, of enough updates."""
        return self.f if updates >= self.least else 0


@dataclass(frozen=True)
class Around(ContextualRule):
    """Base of what does something before another rule, and promises what that one does.

    Attributes:
        then: The other rule.
    """

    then: Reducer

    @property
    def least(self) -> int:
        """As the rule."""
        return self.then.least if isinstance(self.then, Rule) else 1

    def tolerates(self, updates: int) -> int:
        """As the rule."""
        return self.then.tolerates(updates) if isinstance(self.then, Rule) else 0

    def admit(self, spec: Spec) -> None:
        """As every robust rule, and as the rule that follows."""
        super().admit(spec)
        self.then.admit(spec)

    @property
    def root(self) -> object:
        """What the rule that follows wants the server to train on, or None."""
        return getattr(self.then, "root", None)

    def start(self, length: int) -> Memory:
        """The rule's."""
        return self.then.start(length) if isinstance(self.then, Contextual) else {}
