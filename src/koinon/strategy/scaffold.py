"""SCAFFOLD: clients step in the direction of all data, by what they and the server remember of everybody's gradients."""

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
from koinon.strategy.method import Beside, Plain, stepping
from koinon.strategy.strategy import Strategy
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain, Context, OnServer, Stage, State


def scaffold(
    clients: int,
    rate: float = 1.0,
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = (),
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
) -> Strategy:
    """SCAFFOLD: a client's steps are corrected by the difference of two control variates, its own and the server's.

    A client's control is the mean gradient of its last training, which it keeps; the server's is the mean of all clients'.
    The server's travels beside the model and a client's change of its own beside the update, so both ways take twice the
    bytes of FedAvg. The learner must go down by SGD without momentum. The server adds the mean update `rate` times
    itself, so there is no `server` optimizer.

    Source: Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning" (2020), algorithm 1
    with option II.

    Args:
        clients: Clients in all, N in the paper, >= 1; a cohort moves the server's control by its share of them.
        rate: The global step size, > 0.

    Raises:
        AdmissionError: if a number is out of its bounds, or there is noise, which the controls would add up.
    """
    method = ControlVariates(clients, rate)
    chain = Chain((method, *stages))
    return Strategy("scaffold", sample, chain, codec, reducer, downlink=downlink, secure=secure, method=method)


@dataclass(frozen=True)
class ControlVariates(OnServer, Plain):
    """Both sides of SCAFFOLD.

    Running statistics in a model (BatchNorm's) are averaged; their controls stay zero.

    Attributes:
        clients: Clients in all, >= 1.
        rate: The global step size, > 0.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    clients: int
    rate: float

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise AdmissionError(f"SCAFFOLD needs the number of all clients, at least 1, not {self.clients}")
        if not 0 < self.rate < float("inf"):
            raise AdmissionError(f"SCAFFOLD needs a positive finite rate, not {self.rate}; 1 is usual")

    def fit(self, stages: Chain, spec: Spec, codec: Codec, reducer: Reducer) -> None:
        """Noise would add up in the controls."""
        if spec.central_noise or spec.local_noise:
            raise AdmissionError(
                "SCAFFOLD's controls would add up the noise of every round; leave the noise out, or take fedprox(), which "
                "remembers nothing"
            )

    def check(self, learner: Learner) -> None:
        """The way of a training must tell its mean gradient."""
        _, descent = stepping(learner, "SCAFFOLD")
        if descent.momentum:
            raise AdmissionError("SCAFFOLD takes the mean gradient from the way that SGD went; leave its momentum out")

    def beside(self, layout: Layout) -> Beside:
        """A control for each tensor."""
        return tuple((f"control.{slot.name}", slot.shape) for slot in layout.slots)

    def keeps(self, layout: Layout) -> int:
        """The client's control."""
        return 4 * layout.length

    def train(self, learner: Learner, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """Algorithm 1, lines 7 to 14."""
        own, descent = stepping(learner, "SCAFFOLD")
        model, control = start.chunk(2)
        before = task.memory.get("control", torch.zeros_like(model))
        ahead = learner.layout.views(control - before)
        shift = Shift([ahead[slot.name].to(slot.dtype) for slot in learner.layout.slots if slot.trainable])
        update = learner.train(model, data, replace(task, correction=shift), rng)
        change = -control - update.delta / (own.steps(len(data)) * descent.rate)
        for slot in learner.layout.slots:
            if not slot.trainable:
                change[slot.start : slot.stop] = 0
        memory = {**update.memory, "control": before + change}
        return replace(update, delta=torch.cat((update.delta, change)), memory=memory)

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """Algorithm 1, lines 16 and 17: the model by `rate`, the control by the cohort's share of all clients."""
        model, control = total.chunk(2)
        model *= self.rate
        control *= cohort.size / self.clients
        return state, total


@dataclass(frozen=True)
class Shift:
    """Adds the same to every gradient.

    Attributes:
        by: What is added, for each parameter.
    """

    by: Sequence[torch.Tensor]

    def correct(
        self, gradients: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], start: Sequence[torch.Tensor]
    ) -> None:
        """Add it, in place."""
        torch._foreach_add_(list(gradients), list(self.by))
