"""A federation small enough to be run thousands of times, whose every update can be told from every other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from koinon.core.errors import ClientFailed
from koinon.core.layout import Layout, Slot
from koinon.core.rng import generator
from koinon.core.statistics import Metrics, Ratio
from koinon.core.types import ClientId, Spec, Update, Vector
from koinon.data.dataset import DataSet, Dataset, Samples
from koinon.evaluate.evaluation import Evaluation
from koinon.federation import Federation
from koinon.learn.learner import LocalTask
from koinon.secure.secure_sum import SecureSum
from koinon.server.sampling import Sampler
from koinon.strategy.recipes import fedavg
from koinon.update.codec import Float32, InMemory, Shared
from koinon.update.feedback import ErrorFeedback
from koinon.update.quantize import Quantize
from koinon.update.sparsify import TopK
from koinon.update.stage import Context, OnClient, State
from koinon.update.weight import Weight

LENGTH = 8
"""D, the length of the model."""

_LAYOUT = Layout((Slot("walk", (LENGTH,), torch.float32, 0, True),))

MOST_EXAMPLES = 100.0
"""More than any client holds."""

CODEC = ErrorFeedback(TopK(0.5))
"""One whose memory would show in every later update if it were lost or counted twice."""

DOWNLINK = ErrorFeedback(Quantize(4))
"""Two rounds' changes are shorter than the model, three are not; what is left out shows in every later model."""

Whim: TypeAlias = Literal["fails", "is not finite", "has a bug"]
"""What may be wrong with a client's training."""


@dataclass(frozen=True)
class Toy:
    """A learner that walks at random, and never twice the same way.

    Training the same round again gives other bytes, as it does where noise comes from the operating system, so an
    update that was drawn twice does not go unnoticed.

    Attributes:
        entropy: Gives a number in [0, 1), another one each time.
        whims: (client's index, round) -> what goes wrong there.
        witness: Is shown the round and the model that it starts from.
    """

    entropy: Callable[[], float]
    whims: Mapping[tuple[int, int], Whim]
    witness: Callable[[int, Vector], None]

    @property
    def layout(self) -> Layout:
        """One tensor."""
        return _LAYOUT

    def initial(self, seed: int) -> Vector:
        """Somewhere."""
        return torch.linspace(-1.0, 1.0, LENGTH) * (1 + seed % 7)

    def train(self, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """A step that depends on everything.

        Raises:
            ClientFailed: at whim.
        """
        self.witness(task.round, start)
        inputs, _ = data.batch(torch.zeros(1, dtype=torch.int64))
        delta = torch.randn(LENGTH, generator=rng) - 0.1 * start + self.entropy()
        match self.whims.get((int(inputs[0]), task.round)):
            case "fails":
                raise ClientFailed("the loss is not finite")
            case "has a bug":
                raise ZeroDivisionError("division by zero")
            case "is not finite":
                delta[-1] = torch.nan
            case None:
                pass
        return Update.of(delta, len(data), {"train_loss": Ratio(float(delta.square().sum()), 1.0)})

    @property
    def statistics(self) -> Metrics:
        """Of no examples."""
        zero = Ratio(0.0, 0.0)
        return {"train_loss": zero, "train_tally": zero, "distance": zero}

    def evaluate(self, model: Vector, data: Dataset) -> Metrics:
        """Mean distance from the origin."""
        return {"distance": Ratio(float(model.square().sum()), float(len(data)))}


class Counted(OnClient):
    """A stage that counts, on the client, the rounds that it was carried through: state that must not be lost."""

    def admit(self, spec: Spec) -> Spec:
        """Nothing changes."""
        return spec

    def init(self, layout: Layout) -> State:
        """None so far."""
        return {"rounds": torch.zeros((), dtype=torch.int64)}

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """One more, and says so in the metrics."""
        rounds = state["rounds"] + 1
        return {"rounds": rounds}, replace(update, metrics={**update.metrics, "train_tally": Ratio(float(rounds), 1.0)})


def federation(learner: Toy, sample: Sampler, rounds: int, secure: SecureSum | None = None) -> Federation:
    """FedAvg, weighted by examples."""
    codec = CODEC if secure is None else Float32()
    stages = (Counted(), Weight(at_most=MOST_EXAMPLES))
    strategy = fedavg(sample=sample, stages=stages, codec=codec, downlink=DOWNLINK, secure=secure)
    return Federation(learner, strategy, rounds, Evaluation())


def decoded(update: bytes) -> Vector:
    """What a node's bytes stand for; the same in every round."""
    return CODEC.decode(InMemory(update), Shared(_LAYOUT), 0, LENGTH)


def handed_down(memory: State, seed: int, round: int, change: Vector) -> tuple[State, Vector]:
    """What the server's codec remembers after a round that came to `change`, and what nodes are told of it."""
    shared, rng = Shared(_LAYOUT, seed, round), generator(seed, "downlink", round)
    memory, data = DOWNLINK.encode(memory or DOWNLINK.init(_LAYOUT), change, shared, rng)
    return memory, DOWNLINK.decode(InMemory(data), shared, 0, LENGTH)


def holdings(nodes: int) -> dict[ClientId, DataSet]:
    """Data for so many nodes: each knows its index and has another number of examples."""
    return {f"node-{index}": DataSet(_examples(index, 3 * index + 2), _examples(index, 1)) for index in range(nodes)}


def _examples(index: int, count: int) -> Samples:
    return Samples(torch.full((count,), float(index)), torch.zeros(count))
