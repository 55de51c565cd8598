"""How much an update counts in a mean."""

import math
from dataclasses import dataclass, replace

import torch

from koinon.core.errors import AdmissionError
from koinon.core.types import Spec, Update
from koinon.update.stage import Context, OnClient, State


@dataclass(frozen=True)
class Weight(OnClient):
    """Weight an update by the examples it was trained on, as FedAvg does; without this stage all count alike.

    The weight travels beside the update and is applied where the mean is taken, so no rounding enters the update.

    Attributes:
        at_most: Largest weight that a client can have, or None. A bound keeps one large client from deciding
            alone, and is what makes the sensitivity of a weighted sum finite.

    Raises:
        AdmissionError: if `at_most` is not a positive finite number.
    """

    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_most is not None and not (self.at_most > 0 and math.isfinite(self.at_most)):
            raise AdmissionError(f"Weight needs a positive finite at_most, not {self.at_most}")

    def admit(self, spec: Spec) -> Spec:
        """Weights now differ, up to `at_most`."""
        if spec.weighted:
            raise AdmissionError("an update is weighted twice; keep one Weight stage")
        return replace(spec, weighted=True, weight_bound=self.at_most)

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Set each update's weight."""
        weight = update.examples.to(torch.float64)
        if self.at_most is not None:
            weight = weight.clamp(max=self.at_most)
        return state, replace(update, weight=weight)
