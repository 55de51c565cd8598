"""What a strategy adds to local gradients so that clients with different data do not drift apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Vector

Memory: TypeAlias = Mapping[str, torch.Tensor]
"""What a client remembers from one of its rounds to the next, by name, so that it can be saved."""


class Correction(Protocol):
    """Changes the gradients of one local step in place."""

    def correct(
        self,
        gradients: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        start: Sequence[torch.Tensor],
    ) -> None:
        """Change `gradients` in place, given the present `parameters` and those the round started from."""


@runtime_checkable
class Remembering(Protocol):
    """A correction that follows from what the client remembers of its earlier rounds.

    The memory lies beside the node's journal, or in a simulation's checkpoint. If the server refuses an update, the
    memory goes back to what it was before the round.
    """

    def init(self, layout: Layout) -> Memory:
        """The memory before the client's first round; names without dots."""

    def begin(self, state: Memory, layout: Layout) -> Correction:
        """What is added to the gradients of a round."""

    def end(self, state: Memory, delta: Vector) -> Memory:
        """The memory after a round that moved the model by `delta`, float32 `[D]`; neither argument is changed."""


@dataclass(frozen=True)
class Proximal:
    """FedProx: adds the gradient of mu/2 · |w - w_start|², which holds a client near the global model.

    Source: Li et al., "Federated optimization in heterogeneous networks" (2020), eq. 2.

    Attributes:
        mu: Strength of the pull, >= 0; 0 is FedAvg.
    """

    mu: float

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise AdmissionError(f"FedProx needs mu >= 0, not {self.mu}; 0.01 to 1 is usual")

    def correct(
        self,
        gradients: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        start: Sequence[torch.Tensor],
    ) -> None:
        """Add mu · (w - w_start) to every gradient."""
        drift = torch._foreach_sub(list(parameters), list(start))
        torch._foreach_add_(list(gradients), drift, alpha=self.mu)
