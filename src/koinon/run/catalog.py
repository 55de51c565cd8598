"""The runs in a folder."""

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

from koinon.core.errors import AdmissionError, Unavailable
from koinon.durable.history import RunInfo
from koinon.durable.store import Store
from koinon.federation import Federation
from koinon.run import explain_sums
from koinon.run.app import App, new_run_id


def folder_of(runs: Path, id: str) -> Path:
    """Where a run is.

    Raises:
        Unavailable: if there is no such run.
    """
    folder = runs / id
    if "/" in id or not (folder / "run.db").exists():
        raise Unavailable(f"there is no run {id} in {runs}; `koinon runs list` shows those there are")
    return folder


def all_runs(runs: Path) -> list[RunInfo]:
    """Every run that has begun, the newest first."""
    found = []
    for path in runs.glob("*/run.db"):
        store = Store(path.parent)
        info = store.info()
        store.close()
        if info is not None:
            found.append(info)
    return sorted(found, key=lambda info: (info.created, info.id), reverse=True)


def network_run(runs: Path, app: App, federation: Federation, seed: int, id: str | None) -> tuple[Store, RunInfo]:
    """The run that a server is to serve: the one asked for, else the newest that is not over, else a new one.

    A run is not over while rounds are left, or a node has not fetched the final model.

    Raises:
        AdmissionError: if the run that was asked for is of another definition, or a simulation.
    """
    begun = all_runs(runs)
    if id is None:
        asked = ("network", federation.digest, federation.planned, seed)
        mine = (info for info in begun if (info.runtime, info.definition, info.rounds, info.seed) == asked)
        found = next((info for info in mine if _open(runs, info)), None)
    else:
        found = next((info for info in begun if info.id == id), None)
    if found is not None:
        _check(found, federation)
        return Store(runs / found.id), found
    info = RunInfo(
        id=id or new_run_id(app.name),
        app=app.name,
        definition=federation.digest,
        rounds=federation.planned,
        seed=seed,
        parameters=federation.learner.layout.length,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="running",
        runtime="network",
        delta=federation.delta,
        secure=explain_sums.promised(federation),
    )
    return Store(runs / info.id), info


def claim(store: Store) -> int:
    """Make this the one process that serves the run, for as long as it lives; returns the lock's descriptor.

    Raises:
        Unavailable: if another process serves it.
    """
    descriptor = os.open(store.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Unavailable(f"run {store.folder.name} is being served by another process; stop that one first") from None
    return descriptor


def _check(info: RunInfo, federation: Federation) -> None:
    if info.runtime != "network":
        raise AdmissionError(f"run {info.id} is a simulation; go on with it by `koinon runs resume {info.id}`")
    if info.definition != federation.digest:
        raise AdmissionError(
            f"run {info.id} has definition {info.definition[:12]}, the app {federation.digest[:12]}; "
            "restore the app as it was, or start a new run"
        )
    if info.rounds != federation.planned:
        raise AdmissionError(
            f"run {info.id} has {info.rounds} rounds, not {federation.planned}; set --rounds {info.rounds}"
        )


def _open(runs: Path, info: RunInfo) -> bool:
    if info.status != "finished":
        return info.status == "running"
    store = Store(runs / info.id)
    try:
        return not all(store.nodes().values())
    finally:
        store.close()
