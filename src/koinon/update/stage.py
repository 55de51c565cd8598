"""What may happen to an update on its way, and the check that the steps fit together.

A stage says what it needs of an update and what it gives; `Chain.admit` composes those claims when the
federation is built, so what cannot work is refused before anyone trains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from koinon.core.layout import Layout
from koinon.core.types import Cohort, Spec, Update, Vector

State: TypeAlias = Mapping[str, torch.Tensor]
"""A stage's own state by name, so that it can be saved with the run; the server and each client have their own."""


class Stage(Protocol):
    """One step of an update's way: done on the client, undone or completed on the server in reverse order."""

    def admit(self, spec: Spec) -> Spec:
        """What is known of an update after this stage, given what is known before it.

        Raises:
            AdmissionError: if the stage cannot work on such an update; the message names the cure.
        """

    def init(self, layout: Layout) -> State:
        """The state before the first round, on the server and on each client; names without dots."""

    def on_client(self, state: State, update: Update, rng: torch.Generator) -> tuple[State, Update]:
        """Change one client's update, or a batch of them (leading dimensions); `update` is not changed."""

    def on_server(self, state: State, total: Vector, cohort: Cohort, rng: torch.Generator) -> tuple[State, Vector]:
        """Change the aggregated update; the stage owns `total` and may work in place."""


class OnClient:
    """Base of stages that have no state and do nothing on the server."""

    def init(self, layout: Layout) -> State:
        """No state."""
        return {}

    def on_server(self, state: State, total: Vector, cohort: Cohort, rng: torch.Generator) -> tuple[State, Vector]:
        """Leave the aggregate as it is."""
        return state, total


@dataclass(frozen=True)
class Chain:
    """Stages in the order in which a client applies them; itself a stage."""

    stages: tuple[Stage, ...] = ()

    def admit(self, spec: Spec) -> Spec:
        """What is known of an update after all stages."""
        for stage in self.stages:
            spec = stage.admit(spec)
        return spec

    def init(self, layout: Layout) -> State:
        """The stages' states, prefixed by their places in the chain."""
        return _joined([stage.init(layout) for stage in self.stages])

    def on_client(self, state: State, update: Update, rng: torch.Generator) -> tuple[State, Update]:
        """Apply the stages in order."""
        states = _parted(state, len(self.stages))
        for place, stage in enumerate(self.stages):
            states[place], update = stage.on_client(states[place], update, rng)
        return _joined(states), update

    def on_server(self, state: State, total: Vector, cohort: Cohort, rng: torch.Generator) -> tuple[State, Vector]:
        """Apply the stages in reverse order."""
        states = _parted(state, len(self.stages))
        for place, stage in reversed(list(enumerate(self.stages))):
            states[place], total = stage.on_server(states[place], total, cohort, rng)
        return _joined(states), total


def _joined(states: Sequence[State]) -> State:
    return {f"{place}.{name}": tensor for place, state in enumerate(states) for name, tensor in state.items()}


def _parted(state: State, count: int) -> list[State]:
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for key, tensor in state.items():
        place, _, name = key.partition(".")
        parts[int(place)][name] = tensor
    return list(parts)
