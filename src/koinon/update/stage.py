"""What may happen to an update on its way, and the check that the steps fit together.

A stage says what it needs of an update and what it gives; `Chain.admit` composes those claims when the
federation is built, so what cannot work is refused before anyone trains.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, TypeAlias, TypeVar

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.types import Cohort, Spec, Update, Vector

_T = TypeVar("_T")

State: TypeAlias = Mapping[str, torch.Tensor]
"""A stage's own state by name, so that it can be saved with the run; the server and each client have their own."""

Told: TypeAlias = Mapping[str, float]
"""What clients are told of the server's state, by name."""


@dataclass(frozen=True)
class Context:
    """What a stage works with in one round, besides the update.

    Attributes:
        round: Round number, from 1.
        spec: What is known of an update before the stage.
        layout: Which part of an update is which tensor.
        draws: Gives `public`; only a stage that asks for it pays for making it, which takes as long as a small clip.
        noise: Noise that protects people; the stage's own, for this place and client, of the whole run.
        told: On a client, what the server told for this round: what the stage's `tell` gave there.
    """

    round: int
    spec: Spec
    layout: Layout
    draws: Callable[[], torch.Generator]
    noise: Noise
    told: Told = field(default_factory=dict)

    @property
    def public(self) -> torch.Generator:
        """Draws that others may know, since they follow from the run's seed; the same generator for all stages."""
        return self.draws()

    @property
    def secret(self) -> Noise:
        """The noise of this round."""
        return self.noise_of(self.round)

    def noise_of(self, round: int) -> Noise:
        """The noise of any round."""
        return self.noise.of("round", round)


class Stage(Protocol):
    """One step of an update's way: done on the client, undone or completed on the server in reverse order."""

    def admit(self, spec: Spec) -> Spec:
        """What is known of an update after this stage, given what is known before it.

        Raises:
            AdmissionError: if the stage cannot work on such an update; the message names the cure.
        """

    def init(self, layout: Layout) -> State:
        """The state before the first round, on the server and on each client; names without dots."""

    def tell(self, state: State) -> Told:
        """What the clients of the next round must know of the server's state; names without dots."""

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Change one client's update, or a batch of them (leading dimensions); `update` is not changed."""

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """Change the aggregated update; the stage owns `total` and may work in place."""


class OnClient:
    """Base of stages that have no state and do nothing on the server."""

    def init(self, layout: Layout) -> State:
        """No state."""
        return {}

    def tell(self, state: State) -> Told:
        """Nothing."""
        return {}

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """Leave the aggregate as it is."""
        return state, total


class OnServer:
    """Base of stages that have no state and leave a client's update as it is."""

    def admit(self, spec: Spec) -> Spec:
        """Nothing changes on the client."""
        return spec

    def init(self, layout: Layout) -> State:
        """No state."""
        return {}

    def tell(self, state: State) -> Told:
        """Nothing."""
        return {}

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Leave the update as it is; the state is the server's alone."""
        return {}, update


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
            after = stage.admit(spec)
            if spec.tally is not None and not after.central_noise:
                raise AdmissionError(
                    f"{type(stage).__name__} comes after AdaptiveClip and would change its count, where only GaussianNoise may "
                    "follow; use Clip in its place"
                )
            spec = after
        return spec

    def init(self, layout: Layout) -> State:
        """The stages' states, prefixed by their places in the chain."""
        return _joined([stage.init(layout) for stage in self.stages])

    def tell(self, state: State) -> Told:
        """What the stages tell, prefixed by their places in the chain."""
        states = _parted(state, len(self.stages))
        return _joined([stage.tell(own) for stage, own in zip(self.stages, states, strict=True)])

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
        if spec not in self._found:
            specs = [spec]
            for stage in self.stages:
                specs.append(stage.admit(specs[-1]))
            self._found[spec] = specs
        return self._found[spec]

    @cached_property
    def _found(self) -> dict[Spec, list[Spec]]:
        """What `specs` has answered: every client asks the same."""
        return {}

    def _contexts(self, context: Context) -> Iterator[tuple[Stage, Context]]:
        """Each stage with what is known of an update at its place, noise of its own, and what it was told."""
        told = _parted(context.told, len(self.stages))
        for place, (stage, spec) in enumerate(zip(self.stages, self.specs(context.spec), strict=False)):
            yield stage, replace(context, spec=spec, noise=context.noise.of(f"stage {place}"), told=told[place])


def _joined(parts: Sequence[Mapping[str, _T]]) -> dict[str, _T]:
    return {f"{place}.{name}": value for place, part in enumerate(parts) for name, value in part.items()}


def _parted(whole: Mapping[str, _T], count: int) -> list[Mapping[str, _T]]:
    """What belongs to each of so many stages; what names none of them is left out."""
    return [
        {key.partition(".")[2]: value for key, value in whole.items() if key.partition(".")[0] == str(place)}
        for place in range(count)
    ]
