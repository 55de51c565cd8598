"""What may happen to an update on its way, and the check that the steps fit together.

A stage says what it needs of an update and what it gives; `Chain.admit` composes those claims when the
federation is built, so what cannot work is refused before anyone trains.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.types import Cohort, Spec, Update, Vector

State: TypeAlias = Mapping[str, torch.Tensor]
"""A stage's own state by name, so that it can be saved with the run; the server and each client have their own."""


@dataclass(frozen=True)
class Context:
    """What a stage works with in one round, besides the update.

    Attributes:
        spec: What is known of an update before the stage.
        layout: Which part of an update is which tensor.
        public: Draws that others may know, since they follow from the run's seed.
        secret: Noise that protects people; the stage's own, for this round, place and client.
    """

    spec: Spec
    layout: Layout
    public: torch.Generator
    secret: Noise


class Stage(Protocol):
    """One step of an update's way: done on the client, undone or completed on the server in reverse order."""

    def admit(self, spec: Spec) -> Spec:
        """What is known of an update after this stage, given what is known before it.

        Raises:
            AdmissionError: if the stage cannot work on such an update; the message names the cure.
        """

    def init(self, layout: Layout) -> State:
        """The state before the first round, on the server and on each client; names without dots."""

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Change one client's update, or a batch of them (leading dimensions); `update` is not changed."""

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """Change the aggregated update; the stage owns `total` and may work in place."""


class OnClient:
    """Base of stages that have no state and do nothing on the server."""

    def init(self, layout: Layout) -> State:
        """No state."""
        return {}

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """Leave the aggregate as it is."""
        return state, total


@dataclass(frozen=True)
class Chain:
    """Stages in the order in which a client applies them; itself a stage."""

    stages: tuple[Stage, ...] = ()

    def admit(self, spec: Spec) -> Spec:
        """What is known of an update after all stages.

        Raises:
            AdmissionError: from the first stage that does not fit, or that follows the server's noise.
        """
        for stage in self.stages:
            if spec.central_noise:
                raise AdmissionError(
                    f"{type(stage).__name__} comes after noise that the server adds to the sum, and would change what it "
                    "must cover; put the noise last"
                )
            spec = stage.admit(spec)
        return spec

    def init(self, layout: Layout) -> State:
        """The stages' states, prefixed by their places in the chain."""
        return _joined([stage.init(layout) for stage in self.stages])

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Apply the stages in order."""
        states = _parted(state, len(self.stages))
        for place, (stage, own) in enumerate(self._contexts(context)):
            states[place], update = stage.on_client(states[place], update, own)
        return _joined(states), update

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """Apply the stages in reverse order."""
        states = _parted(state, len(self.stages))
        for place, (stage, own) in reversed(list(enumerate(self._contexts(context)))):
            states[place], total = stage.on_server(states[place], total, cohort, own)
        return _joined(states), total

    def specs(self, spec: Spec) -> list[Spec]:
        """What is known of an update before the first stage (`spec`) and after each."""
        specs = [spec]
        for stage in self.stages:
            specs.append(stage.admit(specs[-1]))
        return specs

    def _contexts(self, context: Context) -> Iterator[tuple[Stage, Context]]:
        """Each stage with what is known of an update at its place, and noise of its own."""
        for place, (stage, spec) in enumerate(zip(self.stages, self.specs(context.spec), strict=False)):
            yield stage, replace(context, spec=spec, secret=context.secret.of(f"stage {place}"))


def _joined(states: Sequence[State]) -> State:
    return {f"{place}.{name}": tensor for place, state in enumerate(states) for name, tensor in state.items()}


def _parted(state: State, count: int) -> list[State]:
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for key, tensor in state.items():
        place, _, name = key.partition(".")
        parts[int(place)][name] = tensor
    return list(parts)
