"""FedDyn: clients and server remember how far each client was pulled, until pulls cancel at the optimum of all data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Cohort, Vector
from koinon.learn.corrections import Correction
from koinon.secure.secure_sum import SecureSum
from koinon.server.sampling import Everyone, Sampler
from koinon.strategy.strategy import Strategy
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain, Context, OnServer, Stage, State


def feddyn(
    clients: int,
    alpha: float = 0.1,
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = (),
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
) -> Strategy:
    """FedDyn: each client adds a linear and a quadratic term to its loss, so that the optimum of all data is a fixed point.

    An update costs no more bytes than FedAvg's. A client keeps one vector as long as the model, as does the server. The
    server adds its memory to the mean itself, so there is no `server` optimizer.

    Source: Acar et al., "Federated learning based on dynamic regularization" (2021), algorithm 1.

    Args:
        clients: Clients in all, m in the paper, >= 1; a cohort counts by its share of them.
        alpha: Strength of both terms, > 0; 0.001 to 0.1 is usual.

    Raises:
        AdmissionError: if a number is out of its bounds, or there is noise, which the memories would add up.
    """
    chain = Chain((ServerMemory(clients, alpha), *stages))
    return Strategy(
        "feddyn", sample, chain, codec, reducer, correction=Dynamic(alpha), downlink=downlink, secure=secure
    )


@dataclass(frozen=True)
class Dynamic:
    """A client's part of FedDyn: its gradient at its own optimum, remembered from one of its rounds to the next.

    Attributes:
        alpha: Strength, > 0.
    """

    alpha: float

    def init(self, layout: Layout) -> State:
        """The gradient before the client's first round: zeros."""
        return {"gradient": torch.zeros(layout.length)}

    def begin(self, state: State, layout: Layout) -> Correction:
        """What is added to the gradients of this round."""
        views = layout.views(state["gradient"])
        return _Pulled(self.alpha, [views[slot.name].to(slot.dtype) for slot in layout.slots if slot.trainable])

    def end(self, state: State, delta: Vector) -> State:
        """g - alpha · (w - w_start): the gradient where the client's regularised loss is least."""
        return {"gradient": torch.sub(state["gradient"], delta, alpha=self.alpha)}


@dataclass(frozen=True)
class _Pulled:
    """Adds alpha · (w - w_start) - g to every gradient."""

    alpha: float
    gradient: Sequence[torch.Tensor]

    def correct(
        self, gradients: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], start: Sequence[torch.Tensor]
    ) -> None:
        drift = torch._foreach_sub(list(parameters), list(start))
        torch._foreach_add_(list(gradients), drift, alpha=self.alpha)
        torch._foreach_sub_(list(gradients), list(self.gradient))


@dataclass(frozen=True)
class ServerMemory(OnServer):
    """The server's part of FedDyn, as the first stage: it comes last on the server.

    Running statistics in a model (BatchNorm's) are averaged and not remembered.

    Attributes:
        clients: Clients in all, >= 1.
        alpha: Strength, > 0.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    clients: int
    alpha: float

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise AdmissionError(f"FedDyn needs the number of all clients, at least 1, not {self.clients}")
        if not 0 < self.alpha < float("inf"):
            raise AdmissionError(f"FedDyn needs a positive finite alpha, not {self.alpha}; 0.001 to 0.1 is usual")

    def init(self, layout: Layout) -> State:
        """The server's h: zeros."""
        return {"h": torch.zeros(layout.length)}

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """h - alpha · (|P| / m) · total, and total - h / alpha of the new h."""
        h = torch.sub(state["h"], total, alpha=self.alpha * cohort.size / self.clients)
        for slot in context.layout.slots:
            if not slot.trainable:
                h[slot.start : slot.stop] = 0
        return {"h": h}, total.sub_(h, alpha=1 / self.alpha)
