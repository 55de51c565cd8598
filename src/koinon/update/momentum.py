"""Momentum at the client."""

from dataclasses import dataclass, replace

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Spec, Update
from koinon.update.stage import Context, OnClient, State


@dataclass(frozen=True)
class Momentum(OnClient):
    """Send the moving average of one's updates: momentum · last + (1 - momentum) · update.

    Averages of honest clients scatter less than their updates, which leaves liars less room to hide in.

    Source: Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization" (2021).

    Attributes:
        momentum: In [0, 1).

    Raises:
        AdmissionError: if it is out of its bounds.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise AdmissionError(f"Momentum needs a momentum in [0, 1), not {self.momentum}; 0.9 is usual")

    def admit(self, spec: Spec) -> Spec:
        """A mean of updates keeps the bounds that each of them has."""
        if spec.local_noise:
            raise AdmissionError("Momentum would carry noise from round to round; put it before Local")
        return spec

    def init(self, layout: Layout) -> State:
        """At rest."""
        return {"average": torch.zeros(layout.length)}

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """The next average, and the same to be sent."""
        average = self.momentum * state["average"] + (1 - self.momentum) * update.delta
        return {"average": average}, replace(update, delta=average)
