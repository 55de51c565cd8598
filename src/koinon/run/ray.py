"""Actors of a Ray cluster that train simulated clients: the chunks of one process, and so its bits.

The definition goes to every actor once, the model into the object store once per round, and what an actor made comes back
as one array that is not copied here. Nobody relies on an actor: what a lost one was asked for is asked of another.
"""

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from koinon.core.errors import AdmissionError, Unavailable
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.actors import Actors, Definition, Trainer, line
from koinon.run.app import App, load_app
from koinon.run.engine import Engine

_QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's behaviour of tomorrow, of which it would warn, and no report of what is used."""


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
            kind = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_restarts=0)(Trainer)
            return Actors(ray, ours, kind, actors, _put(ray, made), federation, population, seed)
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
        raise Unavailable(f"{where} does not answer: {line(error)}; see RAY_ADDRESS") from None
    return True


def _put(ray: Any, definition: Definition) -> Any:
    try:
        return ray.put(definition)
    except TypeError as error:
        raise AdmissionError(f"Ray cannot send this definition or its data: {line(error)}") from None
