"""An app: the Python file that says what is trained, and how a node finds its own data."""

import importlib
import importlib.util
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from koinon.core.errors import AdmissionError, KoinonError, Unavailable
from koinon.data.dataset import DataSet
from koinon.data.population import Population
from koinon.federation import Federation

_OF_POPULATION = re.compile(r"population:(\d+)/(\d+)")


@dataclass(frozen=True)
class App:
    """What an app file defines.

    Attributes:
        name: What the person wrote.
        federation: The definition.
        population: For simulation: a `Population`, or a function from a number of clients to one.
        data: For a node: from a source, as written after `--data`, to the node's own data.
    """

    name: str
    federation: Federation
    population: Population | Callable[..., Population] | None = None
    data: Callable[[str], object] | None = None

    def lasting(self, rounds: int | None) -> "App":
        """The app with so many rounds, or with its own."""
        return self if rounds is None else replace(self, federation=replace(self.federation, rounds=rounds))

    def clients(self, count: int | None = None) -> Population:
        """The simulated clients, `count` of them if the app lets one choose.

        Raises:
            AdmissionError: if the app defines no population, or fewer clients than asked for.
        """
        if self.population is None:
            raise AdmissionError(f"{self.name} defines no `population`; add one to simulate it")
        if isinstance(self.population, Population):
            return self.population if count is None else self.population.first(count)
        return self.population() if count is None else self.population(count)

    def node_data(self, source: str) -> DataSet:
        """A node's own data; `population:I/N` is client I of N of the app's population, for trials on one machine.

        Raises:
            AdmissionError: if the app defines no `data`, or there is no such client.
        """
        if match := _OF_POPULATION.fullmatch(source):
            place, count = int(match[1]), int(match[2])
            population = self.clients(count)
            if place >= len(population):
                raise AdmissionError(f"{source}: the population has {len(population)} clients, counted from 0")
            return population[population.ids[place]]
        if self.data is None:
            raise AdmissionError(f"{self.name} defines no `data(source)`; add it so that a node can load its own data")
        return DataSet.of(self.data(source))


def load_app(reference: str) -> App:
    """Load an app from `file.py` or `module:name`.

    Raises:
        Unavailable: if there is no such file or module.
        AdmissionError: if it cannot be run, or defines no federation.
    """
    path, _, name = reference.partition(":")
    module = _from_file(Path(path)) if path.endswith(".py") else _from_module(path)
    federation = getattr(module, name or "federation", None)
    if not isinstance(federation, Federation):
        raise AdmissionError(f"{reference} defines no `{name or 'federation'}`; set it to kn.Federation(...)")
    return App(reference, federation, getattr(module, "population", None), getattr(module, "data", None))


def new_run_id(reference: str) -> str:
    """A name for a new run: when, of what, and four letters against collisions."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(reference.partition(":")[0]).stem).strip("-") or "run"
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{stem[:32]}-{secrets.token_hex(2)}"


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Unavailable(f"there is no app {path}; `koinon new DIR` makes one")
    name = f"koinon_app_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that the source of what it defines can be found for the digest
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except KoinonError:
        raise
    except Exception as error:
        raise AdmissionError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module


def _from_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"there is no app {name}: {error}; give a file ending in .py, or module:name") from error
