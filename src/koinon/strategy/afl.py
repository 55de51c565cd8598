"""Agnostic federated learning: the best model for the worst mixture of the clients."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from koinon.aggregate.geometry import combined
from koinon.aggregate.reducer import Memory, Reducer, Round, Rows, block
from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Cohort, Spec, Update, Vector
from koinon.data.dataset import Dataset
from koinon.learn.learner import Learner, LocalTask
from koinon.server.optimizer import MakeServerOptimizer, ServerOptimizer
from koinon.server.sampling import Everyone, Sampler
from koinon.strategy.method import Beside, Plain, fit_number, loss_of
from koinon.strategy.strategy import Strategy
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain, Context, OnServer, Stage, State


def afl(
    rate: float = 0.1,
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = (),
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    server: MakeServerOptimizer = functools.partial(torch.optim.SGD, lr=1.0),
) -> Strategy:
    """AFL: clients weigh as a mixture that moves to where the loss is greatest, while the model moves to where it is least.

    The mixture goes up the clients' losses and back onto the simplex after every round; the model goes along the clients'
    updates, which with one local step are their gradients. Those who are not drawn keep their share. Beside the update
    travels the client's loss, of which the server must know whose it is: so there is neither `secure` nor `reducer`.

    Source: Mohri et al., "Agnostic federated learning" (2019), algorithm 1 (Stochastic-AFL), with the model's last value.

    Args:
        rate: How fast the mixture moves, by units of loss; > 0.

    Raises:
        AdmissionError: if the rate is out of its bounds, or a clip, noise or a codec would change the loss.
    """
    method = Agnostic()
    chain, mixture = Chain((method, *stages)), WorstMixture(rate)
    return Strategy("afl", sample, chain, codec, mixture, ServerOptimizer(server), downlink=downlink, method=method)


@dataclass(frozen=True)
class Agnostic(OnServer, Plain):
    """A client's side: its loss goes beside its update."""

    def fit(self, stages: Chain, spec: Spec, codec: Codec, reducer: Reducer) -> None:
        """The loss must arrive as it is, at the rule that reads it."""
        fit_number("the loss", stages, codec)
        if not isinstance(reducer, WorstMixture):
            raise AdmissionError(
                f"{type(reducer).__name__} does not read the losses beside updates; leave reducer= out"
            )

    def check(self, learner: Learner) -> None:
        """Any learner will do that measures its loss."""

    def beside(self, layout: Layout) -> Beside:
        """The loss before training, on the training data."""
        return (("loss", (1,)),)

    def train(self, learner: Learner, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """The update, and the loss."""
        loss = loss_of(learner, start[:-1], data, task)
        update = learner.train(start[:-1], data, task, rng)
        return replace(update, delta=torch.cat((update.delta, torch.tensor([loss]))))

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """The mean loss does not move the model."""
        total[-1] = 0
        return state, total


@dataclass(frozen=True)
class WorstMixture:
    """The server's side, as a rule for many updates: a mixture of clients that it remembers, in place of weights.

    Attributes:
        rate: How fast the mixture moves, > 0.

    Raises:
        AdmissionError: if it is no positive finite number.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise AdmissionError(f"AFL needs a positive finite rate, not {self.rate}; 0.01 to 1 is usual")

    def admit(self, spec: Spec) -> None:
        """Each loss must be seen, and the mixture is the weight."""
        if not spec.visible:
            raise AdmissionError(
                "AFL must know whose loss is whose, and a SecureSum hides it; take qfedavg(q), which needs only sums"
            )
        if spec.weighted:
            raise AdmissionError("AFL's mixture takes the place of weights; leave Weight out of stages")

    def start(self, length: int) -> Memory:
        """Nobody is known yet."""
        return {}

    def reduce(self, rows: Rows) -> Vector:
        """The mean: what a first round comes to."""
        return combined(rows, torch.full((len(rows.weights),), 1 / len(rows.weights), dtype=torch.float64))

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The mixture's update; then the mixture goes up the losses. Who comes anew gets an equal share, from all."""
        memory = _joined(memory, round.clients)
        shares = torch.stack([memory[client] for client in round.clients])
        present = float(shares.sum())
        if not present:  # none of those who are here counts at present, and among them nothing can be shared out
            return memory, torch.zeros(rows.length)
        losses = block(rows, rows.length - 1, rows.length)[:, 0].to(torch.float64)
        after = onto_simplex(shares + self.rate * losses, present)
        return {**memory, **dict(zip(round.clients, after, strict=True))}, combined(rows, shares / present)


def onto_simplex(point: torch.Tensor, total: float) -> torch.Tensor:
    """The nearest vector without negative elements whose sum is `total`, > 0; float64 `[n]`.

    Source: Duchi et al., "Efficient projections onto the l1-ball for learning in high dimensions" (2008), figure 1.
    """
    ordered, _ = point.sort(descending=True)
    excess = (ordered.cumsum(0) - total) / torch.arange(1, len(point) + 1)
    last = int((ordered > excess).nonzero().max())
    return (point - excess[last]).clamp(min=0)


def _joined(memory: Memory, clients: Sequence[str]) -> Memory:
    """The mixture with those in it who were not."""
    new = [client for client in clients if client not in memory]
    count = len(memory) + len(new)
    shares = {client: share * (len(memory) / count) for client, share in memory.items()}
    return {**shares, **{client: torch.tensor(1 / count, dtype=torch.float64) for client in new}}
