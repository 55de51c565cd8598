"""A federation: the definition that every runtime runs, its checks and its digest."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from koinon.core.describe import describe
from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout, Slot
from koinon.core.statistics import Metrics, numbers
from koinon.core.types import Spec
from koinon.evaluate.evaluation import Evaluation, of_evaluation
from koinon.learn.learner import Learner
from koinon.learn.personal import Personal
from koinon.privacy.budget import Budget
from koinon.secure.ring import Tally
from koinon.secure.secure_sum import SecureSum
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Uniform
from koinon.strategy.method import Extended, extended
from koinon.strategy.protection import Protection, protections
from koinon.strategy.strategy import Strategy

EXAMPLES = Tally(2.0**40)
"""How a client's number of examples travels within a secure sum."""

NUMBER = Tally(2.0**40, 2.0**-12)
"""What a statistic's number is rounded to and cut off at within a secure sum."""

DELTA = 1e-5
"""At which privacy is told where no budget says otherwise."""


@dataclass(frozen=True)
class Federation:
    """What is trained, how, for how long, and how it is judged.

    Attributes:
        learner: The model and its local training, extended by the strategy's method if it has one.
        strategy: Everything between the clients' updates and the next model.
        rounds: Rounds of training, >= 1.
        evaluation: When and on what the model is evaluated.
        budget: How much privacy may be spent; a run ends before the round that would exceed it.

    Raises:
        AdmissionError: if the parts do not fit together.
    """

    learner: Learner
    strategy: Strategy
    rounds: int
    evaluation: Evaluation = Evaluation()
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise AdmissionError(f"a federation needs at least one round, not {self.rounds}")
        object.__setattr__(self, "learner", extended(self.learner, self.strategy.method))
        within = self.learner.within if isinstance(self.learner, Extended) else self.learner
        if isinstance(within, Personal) and self.evaluation.test is not None:
            raise AdmissionError(
                "the server has none of the clients' own layers and cannot evaluate; leave test= out, and give clients held-out "
                "data, by kn.DataSet(train, test)"
            )
        if self.protections:
            self._check_noise()
        if self.scheme is not None:
            self.scheme.admit(int(self.strategy.promised.cohort or self.strategy.least))
        stop, told = self.evaluation.stop, of_evaluation(getattr(self.learner, "statistics", {}))
        if stop is not None and told and stop.metric not in told:
            raise AdmissionError(
                f"early stopping looks at {stop.metric}, and the learner measures {', '.join(sorted(told))}"
            )
        if self.budget is not None and self._affordable(1) < 1:
            raise AdmissionError(
                f"one round exceeds the budget of epsilon {self.budget.epsilon:g}; add noise, sample fewer clients, or "
                "use kn.calibrate"
            )

    @cached_property
    def protections(self) -> tuple[Protection, ...]:
        """What noise protects, round by round; empty without noise."""
        release = getattr(self.learner, "release", None)  # of learners that add noise themselves
        record = release() if release is not None else None
        return protections(self.strategy.stages, self.strategy.sample, record, self.carried)

    @property
    def told(self) -> Metrics:
        """Zeros of what clients tell within a secure sum; nothing beside noise."""
        return {} if self.protections else getattr(self.learner, "statistics", {})

    @cached_property
    def scheme(self) -> SecureSum | None:
        """The secure sum of the definition, with all that travels in it; None where nothing is added up secretly.

        Behind the update come, as tallies: its weight, its examples, and the numbers of every statistic that clients tell.
        """
        own = self.strategy.secure_sum(self.carried)
        if own is None:
            return None
        count = sum(len(numbers(zero)) for zero in self.told.values())
        return replace(own, tallies=(EXAMPLES, *(NUMBER,) * count))

    @property
    def delta(self) -> float | None:
        """At which what is spent is told: the budget's, or 1e-5; None without noise."""
        if not self.protections:
            return None
        return self.budget.delta if self.budget is not None else DELTA

    @cached_property
    def planned(self) -> int:
        """Rounds of a run: `rounds`, or as many of them as the budget allows."""
        return self._affordable(self.rounds)

    @property
    def spec(self) -> Spec:
        """What the server knows of each update that it is given."""
        return self.strategy.admit()

    @property
    def carried(self) -> int:
        """Coordinates of an update on its way: the model's, and what stages add behind them."""
        return self.strategy.carried(self.learner.layout.length)

    @cached_property
    def travelling(self) -> Layout:
        """The layout of an update on its way."""
        own = self.learner.layout
        if self.carried == own.length:
            return own
        return Layout((*own.slots, Slot("tally", (self.carried - own.length,), torch.float32, own.length, False)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over the learner with its source, the strategy and the layout.

        Equal on machines that run the same definition. It covers neither data, nor how the server evaluates, nor the
        number of rounds, which a node's owner limits by policy.
        """
        slots = [(slot.name, slot.shape, str(slot.dtype)) for slot in self.learner.layout.slots]
        parts = (self.learner, self.strategy, self.evaluation.federated, self.budget, slots)
        return hashlib.sha256(describe(parts).encode()).hexdigest()

    def _check_noise(self) -> None:
        """Whether anything would be told beside the noise, or is not covered by it."""
        sample = self.strategy.sample
        if not isinstance(sample, Everyone | Uniform | RoundRobin | Poisson):
            raise AdmissionError(
                f"{type(sample).__name__} may choose by what clients hold, which noise does not cover; sample by "
                "Poisson(rate), Uniform(count), RoundRobin(count) or Everyone()"
            )
        if self.evaluation.federated:
            raise AdmissionError(
                "nodes would tell metrics of their own data without noise; give evaluation=kn.Evaluation(federated=False, …)"
            )
        covered = min((each.covers for each in self.protections if each.covers is not None), default=self.rounds)
        if self.rounds > covered:
            raise AdmissionError(
                f"CorrelatedNoise covers {covered} rounds, and there are to be {self.rounds}; give CorrelatedNoise(rounds="
                f"{self.rounds}, …)"
            )
        buffers = [slot.name for slot in self.learner.layout.slots if not slot.trainable]
        if buffers:
            raise AdmissionError(
                f"{buffers[0]} is a running statistic of the data, which noise cannot protect well; use GroupNorm in place of "
                "BatchNorm"
            )

    def _affordable(self, rounds: int) -> int:
        """The largest number of rounds, up to `rounds`, that the budget allows; every protection must stay within it."""
        if self.budget is None:
            return rounds
        if not self.protections:
            raise AdmissionError("there is a budget, but nothing adds noise; add GaussianNoise, Local or DPSGD")
        return min(each.rounds_within(self.budget, rounds) for each in self.protections)
