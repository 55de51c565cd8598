"""A federation: the definition that every runtime runs, its checks and its digest."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from koinon.core.describe import describe
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec
from koinon.evaluate.evaluation import Evaluation
from koinon.learn.learner import Learner
from koinon.strategy.strategy import Strategy


@dataclass(frozen=True)
class Federation:
    """What is trained, how, for how long, and how it is judged.

    Attributes:
        learner: The model and its local training.
        strategy: Everything between the clients' updates and the next model.
        rounds: Rounds of training, >= 1.
        evaluation: When and on what the model is evaluated.

    Raises:
        AdmissionError: if the parts do not fit together.
    """

    learner: Learner
    strategy: Strategy
    rounds: int
    evaluation: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise AdmissionError(f"a federation needs at least one round, not {self.rounds}")

    @property
    def spec(self) -> Spec:
        """What the server knows of each update that it is given."""
        return self.strategy.admit()

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over the learner with its source, the strategy and the layout.

        Equal on machines that run the same definition. It covers neither data, nor how the server evaluates, nor the
        number of rounds, which a node's owner limits by policy.
        """
        slots = [(slot.name, slot.shape, str(slot.dtype)) for slot in self.learner.layout.slots]
        parts = (self.learner, self.strategy, self.evaluation.federated, slots)
        return hashlib.sha256(describe(parts).encode()).hexdigest()
