"""q-FedAvg: who fares worse counts more, so that accuracy is spread more evenly over the clients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Cohort, Spec, Update, Vector
from koinon.data.dataset import Dataset
from koinon.learn.learner import Learner, LocalTask
from koinon.secure.secure_sum import SecureSum
from koinon.server.sampling import Everyone, Sampler
from koinon.strategy.method import Beside, Plain, fit_number, fit_sum, loss_of, scale, stepping
from koinon.strategy.strategy import Strategy
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain, Context, OnServer, Stage, State


def qfedavg(
    q: float = 1.0,
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = (),
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
) -> Strategy:
    """q-FedAvg: an update counts by the client's loss to the power of q, and the step is as long as the losses allow.

    With q = 0 it is FedAvg with an equal say for every client; the larger q is, the more it is about the worst. With one
    local step it is q-FedSGD. The learner must go down by SGD, whose learning rate is the paper's 1 / L. Beside the update
    travels one number, so that the server needs only sums. The server's step follows from the losses, so there is no
    `server` optimizer.

    Source: Li et al., "Fair resource allocation in federated learning" (2020), algorithm 2.

    Args:
        q: How much fairness weighs, >= 0; 0.1 to 5 is usual.

    Raises:
        AdmissionError: if q is out of its bounds, or a clip, noise, a codec or a rule would change the number.
    """
    method = FairAveraging(q)
    chain = Chain((method, *stages))
    return Strategy("qfedavg", sample, chain, codec, reducer, downlink=downlink, secure=secure, method=method)


@dataclass(frozen=True)
class FairAveraging(OnServer, Plain):
    """Both sides of q-FedAvg; all that travels is divided by the paper's L, which does not change the step.

    Running statistics in a model (BatchNorm's) are averaged.

    Attributes:
        q: How much fairness weighs, >= 0.

    Raises:
        AdmissionError: if it is negative or not finite.
    """

    q: float

    def __post_init__(self) -> None:
        if not 0 <= self.q < math.inf:
            raise AdmissionError(f"q-FedAvg needs a finite q >= 0, not {self.q}; 0.1 to 5 is usual")

    def fit(self, stages: Chain, spec: Spec, codec: Codec, reducer: Reducer) -> None:
        """The number must arrive as it is."""
        fit_number("the step's curvature", stages, codec)
        fit_sum("the step's curvature", reducer)

    def check(self, learner: Learner) -> None:
        """The learning rate must be known."""
        stepping(learner, "q-FedAvg")

    def beside(self, layout: Layout) -> Beside:
        """h / L: how curved the client's loss to the power of q + 1 may be."""
        return (("curvature", (1,)),)

    def train(self, learner: Learner, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """F^q · delta, and F^q + q F^(q-1) · L |delta|², where F is the loss before training."""
        _, descent = stepping(learner, "q-FedAvg")
        model = start[:-1]
        loss = max(loss_of(learner, model, data, task), _LEAST)
        update = learner.train(model, data, task, rng)
        layout = learner.layout
        moved = sum(
            float(update.delta[slot.start : slot.stop].square().sum()) for slot in layout.slots if slot.trainable
        )
        curvature = loss**self.q + self.q * loss ** (self.q - 1) * moved / descent.rate
        delta = torch.cat((update.delta, torch.tensor([curvature])))
        scale(layout, delta, loss**self.q)
        return replace(update, delta=delta)

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """The sum of updates / the sum of curvatures, which is the quotient of their means; nothing if nobody took part."""
        if curvature := float(total[-1]):
            scale(context.layout, total, 1 / curvature)
        total[-1] = 0
        return state, total


_LEAST = 1e-10
"""Of a client without any loss, whose loss to the power of q - 1 would not be finite."""
