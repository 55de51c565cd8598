"""Actors that train a round's chunks, and others in place of those that are lost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from koinon.core.errors import AdmissionError, ClientFailed, KoinonError, Unavailable
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.allocator import hold_on
from koinon.run.chunks import Chunk, chunks
from koinon.run.engine import InProcess
from koinon.run.memory import Bytes, Parcel, Place, read_only
from koinon.run.schedule import Schedule, room
from koinon.run.work import ClientState, Local
from koinon.run.worker import Asked, Result, answer, raised, read, written
from koinon.update.stage import Told

ATTEMPTS = 3
"""Actors that may be lost of a chunk before it is given up: one more than processes, as a machine may fail by itself."""

START_S = 120.0
"""Seconds to wait for an actor while there is none: a busy cluster may have no room."""

Definition = Callable[[], tuple[Federation, Population]]
"""Makes what is trained, where it is called."""


class Trainer:
    """An actor. It raises nothing of its own: an error comes back as what it is."""

    def begin(self, definition: Definition, seed: int) -> tuple[str, str] | None:
        """Make what is trained; the kind and message of what went wrong."""
        hold_on()
        torch.set_num_threads(1)
        try:
            self._engine = InProcess(*definition(), seed)
        except KoinonError as error:
            return type(error).__name__, str(error)
        return None

    def train(self, asked: Asked, model: "np.ndarray[Any, Any]", states: Bytes) -> tuple[Result, Bytes]:
        """What a chunk came to, and the memory that it lies in."""
        results = Parcel()
        result = answer(self._engine, asked, read_only(model), Parcel(states), results)
        return result, results.array


@dataclass(frozen=True, eq=False)
class _Actor:
    handle: Any


class Actors:
    """An engine of actors; `koinon.run.ray.OnRay` makes it."""

    def __init__(
        self,
        ray: Any,
        ours: bool,
        kind: Any,
        actors: int,
        definition: Any,
        federation: Federation,
        population: Population,
        seed: int,
    ) -> None:
        self.ray = ray
        self.room = room(federation, actors)
        self.there: set[_Actor] = set()
        self.starting: dict[Any, _Actor] = {}
        self._ours = ours
        self._kind = kind
        self._definition = definition
        self._length = federation.learner.layout.length
        self._population = population
        self._seed = seed
        self._failed = 0  # starts, since the last that did not
        for _ in range(actors):
            self.start()

    def train(
        self, round: int, cohort: Sequence[ClientId], model: Vector, states: Mapping[ClientId, ClientState], told: Told
    ) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """As `Engine.train`.

        Raises:
            Unavailable: if actors are lost of a chunk again and again, or there are none.
            KoinonError: if a client's data cannot be made.
        """
        vector = self.ray.put(model.numpy())
        yield from _Round(self, round, chunks(cohort, self._length, self._population), vector, states, told).results()

    def close(self) -> None:
        """End the actors, and Ray if it was started for them."""
        for actor in (*self.there, *self.starting.values()):
            self.ray.kill(actor.handle)
        self.there, self.starting = set(), {}
        if self._ours:
            self.ray.shutdown()

    def start(self) -> None:
        """Ask for one more actor."""
        actor = _Actor(self._kind.remote())
        self.starting[actor.handle.begin.remote(self._definition, self._seed)] = actor

    def begun(self, reference: Any) -> _Actor | None:
        """What became of an actor that was asked for: it is there, or another one is asked for."""
        actor = self.starting.pop(reference)
        try:
            fault = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise AdmissionError(
                f"the definition cannot be made on the cluster: {line(error)}; what it imports must be installed on every machine"
            ) from None
        except self.ray.exceptions.RayError as error:
            self._failed += 1
            if self._failed >= ATTEMPTS:
                raise Unavailable(f"{self._failed} actors were lost before they began: {line(error)}") from None
            self.start()
            return None
        if fault is not None:
            raise raised(*fault)
        self._failed = 0
        self.there.add(actor)
        return actor

    def lost(self, actor: _Actor) -> None:
        """An actor does not answer: end it, if it is still somewhere, and ask for another."""
        self.there.discard(actor)
        self.ray.kill(actor.handle)
        self.start()


class _Round:
    """A round's chunks on their way through the actors."""

    def __init__(
        self,
        engine: Actors,
        number: int,
        chunks: Sequence[Chunk],
        model: Any,
        states: Mapping[ClientId, ClientState],
        told: Told,
    ) -> None:
        self._engine = engine
        self._number = number
        self._chunks = chunks
        self._model = model
        self._states = states
        self._told = told
        self._schedule = Schedule(chunks, engine.there, engine.room, ATTEMPTS)
        self._asked: dict[Any, tuple[_Actor, int]] = {}
        self._done: dict[int, tuple[Result, Bytes]] = {}

    def results(self) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """Every client's, in canonical order."""
        for place, chunk in enumerate(self._chunks):
            while place not in self._done:
                while (asked := self._schedule.next()) is not None:
                    self._ask(*asked)
                self._listen()
            result, array = self._done.pop(place)
            yield from zip(chunk.clients, read(Parcel(array), result), strict=True)
            self._schedule.taken()

    def _ask(self, actor: _Actor, place: int) -> None:
        clients, states = self._chunks[place].clients, Parcel()
        names = written(states, [self._states[client] for client in clients])
        asked = Asked(self._number, place, 0, clients, Place(0, 0), names, self._told)
        self._asked[actor.handle.train.remote(asked, self._model, states.array)] = actor, place

    def _listen(self) -> None:
        """Take what actors have to say; wait until there is something."""
        ray, engine = self._engine.ray, self._engine
        waiting = [*self._asked, *engine.starting]
        ready, _ = ray.wait(waiting, num_returns=1, timeout=None if self._asked else START_S)
        if not ready:
            raise Unavailable(f"the cluster gave no actor in {START_S:g} s; ask for less, or wait until it is free")
        (reference,) = ready
        if reference in engine.starting:
            actor = engine.begun(reference)
            if actor is not None:
                self._schedule.joined(actor)
            return
        actor, place = self._asked.pop(reference)
        try:
            result, array = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            names = self._chunks[place].names
            raise ClientFailed(f"{names}, round {self._number}: {line(error)}; workers=1 shows where") from None
        except (ray.exceptions.ObjectLostError, ray.exceptions.ObjectFetchTimedOutError):
            self._schedule.again(actor, place)
        except ray.exceptions.RayError as error:
            self._lost(actor, error)
        else:
            if result.error is not None:
                raise raised(*result.error)
            self._schedule.done(actor, place)
            self._done[place] = result, array

    def _lost(self, actor: _Actor, error: Exception) -> None:
        """Others do what a lost actor was asked for."""
        self._asked = {reference: asked for reference, asked in self._asked.items() if asked[0] is not actor}
        chunk, given_up = self._schedule.lost(actor)
        if chunk is not None and given_up:
            raise Unavailable(
                f"{ATTEMPTS} actors were lost while they trained {chunk.names} in round {self._number}: {line(error)}; "
                "workers=1 without Ray shows a fault in this process"
            )
        self._engine.lost(actor)


def line(error: Exception) -> str:
    """The last line of what Ray tells, shortened; the others are its own traceback."""
    lines = [each.strip() for each in str(error).splitlines() if each.strip()]
    return lines[-1][:300] if lines else type(error).__name__
