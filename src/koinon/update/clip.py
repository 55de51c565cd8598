"""Bound an update's norm."""

import math
from dataclasses import dataclass, replace

import torch

from koinon.core.errors import AdmissionError
from koinon.core.types import Spec, Update
from koinon.update.stage import OnClient, State


@dataclass(frozen=True)
class Clip(OnClient):
    """Scale an update down to L2 norm `norm` when it is longer; shorter ones stay as they are.

    The norm is taken in float64, so that the bound holds to float32 rounding for any length and any values.

    Attributes:
        norm: Largest L2 norm that leaves the client, > 0, in the units of the model's weights.

    Raises:
        AdmissionError: if `norm` is not a positive finite number.
    """

    norm: float

    def __post_init__(self) -> None:
        if not (self.norm > 0 and math.isfinite(self.norm)):
            raise AdmissionError(f"Clip needs a positive finite norm, not {self.norm}")

    def admit(self, spec: Spec) -> Spec:
        """The bound is `norm`, or a tighter one that held before."""
        return replace(spec, l2_bound=self.norm if spec.l2_bound is None else min(self.norm, spec.l2_bound))

    def on_client(self, state: State, update: Update, rng: torch.Generator) -> tuple[State, Update]:
        """Clip each update of the batch."""
        length = torch.linalg.vector_norm(update.delta, dim=-1, keepdim=True, dtype=torch.float64)
        factor = (self.norm / length.clamp(min=self.norm)).to(torch.float32)
        return state, replace(update, delta=update.delta * factor)
