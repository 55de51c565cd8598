"""FedNova: the mean of what clients' steps are worth, so that those who make more of them do not pull harder."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.descent import Descent
from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Cohort, Spec, Update, Vector
from koinon.data.dataset import Dataset
from koinon.learn.corrections import Proximal
from koinon.learn.learner import Learner, LocalTask
from koinon.secure.secure_sum import SecureSum
from koinon.server.optimizer import MakeServerOptimizer, ServerOptimizer
from koinon.server.sampling import Everyone, Sampler
from koinon.strategy.method import Beside, Plain, fit_number, fit_sum, scale, stepping
from koinon.strategy.strategy import Strategy
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain, Context, OnServer, Stage, State
from koinon.update.weight import Weight


def fednova(
    mu: float = 0.0,
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = (Weight(),),
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(torch.optim.SGD, lr=1.0),
) -> Strategy:
    """FedNova: updates are divided by the local steps that they are worth, and their mean is taken as many steps as the mean.

    So clients of many steps, by more data or epochs, do not draw the model to their own optimum. The learner must go down
    by SGD, with momentum if it likes. Beside the update travels one number, so that the server needs only sums.

    Source: Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated optimization" (2020),
    with the step weights a_i of its solvers, and the effective steps that FedAvg has, the mean of |a_i|.

    Args:
        mu: Strength of FedProx's pull to the global model, >= 0; it enters a_i.

    Raises:
        AdmissionError: if a clip, noise, a codec or a rule would change the number beside the update.
    """
    method = NormalisedAveraging(mu)
    pull = Proximal(mu) if mu else None
    chain = Chain((method, *stages))
    made = ServerOptimizer(server)
    return Strategy("fednova", sample, chain, codec, reducer, made, pull, downlink, secure, method=method)


@dataclass(frozen=True)
class NormalisedAveraging(OnServer, Plain):
    """Both sides of FedNova.

    Attributes:
        mu: Strength of the pull to the global model, >= 0.

    Raises:
        AdmissionError: if it is negative.
    """

    mu: float

    def __post_init__(self) -> None:
        Proximal(self.mu)

    def fit(self, stages: Chain, spec: Spec, codec: Codec, reducer: Reducer) -> None:
        """The number of steps must arrive as it is."""
        fit_number("the number of steps", stages, codec)
        fit_sum("the number of steps", reducer)

    def check(self, learner: Learner) -> None:
        """Steps must be known, and each must get nearer."""
        _, descent = stepping(learner, "FedNova")
        if descent.rate * self.mu >= 1:
            raise AdmissionError(
                f"with mu {self.mu:g} and learning rate {descent.rate:g} a step goes past the global model; lower one of them"
            )

    def beside(self, layout: Layout) -> Beside:
        """|a_i|, the steps that an update is worth."""
        return (("steps", (1,)),)

    def train(self, learner: Learner, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """The update divided by the steps that it is worth, and their number."""
        own, descent = stepping(learner, "FedNova")
        update = learner.train(start[:-1], data, task, rng)
        worth = steps_worth(own.steps(len(data)), descent, self.mu)
        delta = torch.cat((update.delta, torch.tensor([worth])))
        scale(learner.layout, delta, 1 / worth)
        return replace(update, delta=delta)

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """The mean direction, as many steps as the mean."""
        scale(context.layout, total, float(total[-1]))
        total[-1] = 0
        return state, total


def steps_worth(steps: int, descent: Descent, mu: float) -> float:
    """|a_i|, the sum of the weights with which the gradients of so many steps are in their update; >= 1.

    With momentum rho it is (steps - rho (1 - rho^steps) / (1 - rho)) / (1 - rho); with learning rate eta and a pull mu,
    (1 - (1 - eta mu)^steps) / (eta mu). Both follow from going along gradients that are all 1.
    """
    moved = velocity = 0.0
    for _ in range(steps):
        velocity = descent.momentum * velocity + 1 - descent.rate * mu * moved
        moved += velocity
    return moved
