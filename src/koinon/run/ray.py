"""Actors of a Ray cluster that train simulated clients: the chunks of one process, and so its bits.

The definition goes to every actor once, the model into the object store once per round, and what an actor made comes back
as one array that is not copied here. Nobody relies on an actor: what a lost one was asked for is asked of another.
"""

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from koinon.core.errors import AdmissionError, ClientFailed, KoinonError, Unavailable
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.allocator import hold_on
from koinon.run.app import App, load_app
from koinon.run.chunks import Chunk, chunks
from koinon.run.engine import Engine, InProcess
from koinon.run.memory import Bytes, Parcel, Place, read_only
from koinon.run.schedule import Schedule, room
from koinon.run.work import ClientState, Local
from koinon.run.worker import Asked, Result, answer, raised, read, written
from koinon.update.stage import Told

ATTEMPTS = 3
"""Actors that may be lost of a chunk before it is given up: one more than processes, as a machine may fail by itself."""

START_S = 120.0
"""Seconds to wait for an actor while there is none: a busy cluster may have no room."""

_QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's behaviour of tomorrow, of which it would warn, and no report of what is used."""

Definition = Callable[[], tuple[Federation, Population]]


@dataclass(frozen=True)
class AppThere:
    """An app that every actor loads from the disk of its own machine.

    Attributes:
        reference: `file.py`, or `module:name`.
        app: What it defines here, with the number of rounds that was asked for.
        population: Its clients here.
        rounds: The number that was asked for.
        clients: The number that was asked for.
    """

    reference: str
    app: App
    population: Population
    rounds: int | None = None
    clients: int | None = None

    def definition(self, population: Population) -> Definition:
        """What makes it there.

        Raises:
            AdmissionError: if other clients are to be trained than the app's.
        """
        if population is not self.population:
            raise AdmissionError("actors that load an app train its own clients; leave out app=, and these are sent")
        path, colon, name = self.reference.partition(":")
        full = str(Path(path).resolve()) if path.endswith(".py") else path
        return _Loaded(f"{full}{colon}{name}", self.app.federation.digest, self.rounds, self.clients)


@dataclass(frozen=True)
class _Loaded:
    reference: str
    digest: str
    rounds: int | None
    clients: int | None

    def __call__(self) -> tuple[Federation, Population]:
        app = load_app(self.reference).lasting(self.rounds)
        if app.federation.digest != self.digest:
            raise AdmissionError(f"{self.reference} is another app on a machine of the cluster; copy it there as it is")
        return app.federation, app.clients(self.clients)


@dataclass(frozen=True)
class _Sent:
    federation: Federation
    population: Population

    def __call__(self) -> tuple[Federation, Population]:
        return self.federation, self.population


@dataclass(frozen=True)
class OnRay:
    """An engine for `kn.simulate` on a Ray cluster: that of `RAY_ADDRESS`, one that is connected, or a new one here.

    Definition and data reach the actors by Ray's own serialisation, which runs code: a cluster must be trusted.

    Attributes:
        actors: How many train clients; None: as many as the cluster has room for.
        num_cpus: Of each actor, >= 0.
        num_gpus: Of each actor, >= 0.
        app: What each actor loads from its own disk in place of what would be sent; the command line's.

    Raises:
        AdmissionError: if there are to be fewer than one, or they would need nothing.
    """

    actors: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    app: AppThere | None = None

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise AdmissionError(f"{self.actors} actors cannot train; give 1 or more")
        if min(self.num_cpus, self.num_gpus) < 0 or not self.num_cpus + self.num_gpus > 0:
            raise AdmissionError(
                f"an actor cannot have {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs; give it num_cpus=1"
            )

    def __call__(self, federation: Federation, population: Population, seed: int) -> Engine:
        """The engine.

        Raises:
            AdmissionError: if Ray is not installed, the cluster has no room, or the definition cannot be sent.
            Unavailable: if no cluster answers.
        """
        ray = _ray()
        ours = _connected(ray)
        try:
            actors = self._fitting(ray)
            made = self.app.definition(population) if self.app else _Sent(federation, population)
            kind = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_restarts=0)(_Trainer)
            return _OnRay(ray, ours, kind, actors, _put(ray, made), federation, population, seed)
        except BaseException:
            if ours:
                ray.shutdown()
            raise

    def _fitting(self, ray: Any) -> int:
        """How many actors there will be."""
        fit = sum(self._on(node["Resources"]) for node in ray.nodes() if node["Alive"])
        wanted = self.actors or fit
        if not fit or wanted > fit:
            raise AdmissionError(
                f"the cluster has room for {fit} actors of {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs, not "
                f"{max(wanted, 1)}; ask for fewer, or for less (num_cpus, num_gpus)"
            )
        return wanted

    def _on(self, resources: Mapping[str, float]) -> int:
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return min(int(resources.get(name, 0) / each + 1e-6) for name, each in asked.items() if each)


class _Trainer:
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


class _OnRay:
    """The engine; `OnRay` says of what."""

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
            raise AdmissionError(f"the definition cannot be made on the cluster: {_line(error)}; {_IMPORTS}") from None
        except self.ray.exceptions.RayError as error:
            self._failed += 1
            if self._failed >= ATTEMPTS:
                raise Unavailable(f"{self._failed} actors were lost before they began: {_line(error)}") from None
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
        engine: _OnRay,
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
            raise ClientFailed(f"{names}, round {self._number}: {_line(error)}; workers=1 shows where") from None
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
                f"{ATTEMPTS} actors were lost while they trained {chunk.names} in round {self._number}: {_line(error)}; "
                "workers=1 without Ray shows a fault in this process"
            )
        self._engine.lost(actor)


_IMPORTS = "what it imports must be installed on every machine"


def _ray() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise AdmissionError("Ray is not installed; pip install 'koinon[ray]', or train with --engine local") from None


def _connected(ray: Any) -> bool:
    """Connect to the cluster there is, or start one; whether it was started here."""
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster {address}" if address else "a Ray of this machine"
        raise Unavailable(f"{where} does not answer: {_line(error)}; see RAY_ADDRESS") from None
    return True


def _put(ray: Any, definition: Definition) -> Any:
    try:
        return ray.put(definition)
    except TypeError as error:
        raise AdmissionError(f"Ray cannot send this definition or its data: {_line(error)}") from None


def _line(error: Exception) -> str:
    """The last line of what Ray tells, shortened; the others are its own traceback."""
    lines = [each.strip() for each in str(error).splitlines() if each.strip()]
    return lines[-1][:300] if lines else type(error).__name__
