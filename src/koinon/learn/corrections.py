"""What a strategy adds to local gradients so that clients with different data do not drift apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from koinon.core.errors import AdmissionError


class Correction(Protocol):
    """Changes the gradients of one local step in place."""

    def correct(
        self,
        gradients: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        start: Sequence[torch.Tensor],
    ) -> None:
        """Change `gradients` in place, given the present `parameters` and those the round started from."""


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
