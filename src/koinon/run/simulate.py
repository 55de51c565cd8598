"""A federation in one process: the same protocol, the same work, no network."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from koinon.core.errors import AdmissionError, Unavailable
from koinon.core.network import Network
from koinon.core.noise import Noise
from koinon.core.types import ClientId
from koinon.data.devices import Clock
from koinon.data.population import Population
from koinon.durable.history import RunInfo
from koinon.durable.store import Store
from koinon.federation import Federation
from koinon.learn.guard import one_thread
from koinon.privacy.admission import fault_of_delta
from koinon.run import explain_sums
from koinon.run.allocator import give_back, hold_on
from koinon.run.app import new_run_id
from koinon.run.attacked import Attacked
from koinon.run.clock import InRounds, Pace, Parts, Timeless
from koinon.run.engine import InProcess, MakeEngine
from koinon.run.flights import Flights
from koinon.run.pool import Pool
from koinon.run.ray import OnRay
from koinon.run.result import Run
from koinon.run.simulation import Simulation
from koinon.strategy.protection import check_enough
from koinon.view.progress import Progress, progress_for
from koinon.view.together import Together


def simulate(
    federation: Federation,
    population: Population,
    seed: int = 0,
    workers: int = 1,
    *,
    runs: str | Path = "runs",
    name: str = "simulation",
    clients: int | None = None,
    resume: str | None = None,
    engine: MakeEngine = InProcess,
    network: Network | Callable[[ClientId], Network] | None = None,
    noise: Noise | None = None,
    faithful: bool = False,
    clock: Clock | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Progress] = (),
) -> Run:
    """Run a federation on this machine, or on a Ray cluster. Equal seeds give equal bits, however many workers.

    Args:
        federation: What is trained.
        population: The clients.
        seed: Of everything that is drawn.
        workers: Processes that train clients; with 1 it is this one, with more they are forked from it (Linux), or actors
            where the engine is `OnRay`.
        runs: Folder of the runs' folders.
        name: What the run's id and its report call it: an app's file, for instance.
        clients: The number of clients that was asked for, to be recorded with the run.
        resume: Id of a run to go on with.
        engine: Makes, from federation, population and seed, what trains the clients.
        network: Between the server and every client, or each of them: history tells how long a round would have waited for
            it, and `Fitted` chooses by it. It changes nothing else. A run that goes on keeps one that is the same for all.
        noise: The server's, of another run whose secret is at hand, to go through that run again; None: by the seed.
        faithful: Whether secure sums are made with all of their cryptography. It takes longer, holds everybody's update, and
            gives the same bits.
        clock: Clients' devices, and how long a round waits for them: who is late does not count, and history tells the time.
            None: everybody answers, and there is no time. A run that goes on keeps its clock.
        progress: Told what happens; by default a live view in terminals and notebooks.
        callbacks: Told the same beside it: `kn.TensorBoard`, `kn.MLflow`, or a `kn.Callback` of one's own. One that fails is told
            no more, and the run goes on.

    Raises:
        AdmissionError: if a run to be resumed is of another definition, seed or clock, there cannot be such workers, or an
            asynchronous federation is given no clock.
        ClientFailed: if every client of a round failed.
        Unavailable: if worker processes die, or there is no Ray cluster.
    """
    make = _on(workers, engine)
    _check_population(federation, len(population.ids))
    layout = federation.learner.layout
    asked = RunInfo(
        id=resume or new_run_id(name),
        app=name,
        definition=federation.digest,
        rounds=federation.planned,
        seed=seed,
        parameters=layout.length,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="running",
        runtime="simulation",
        clients=clients,
        delta=federation.delta,
        secure=explain_sums.promised(federation),
        network=network if isinstance(network, Network) else None,
        clock=clock,
    )
    folder = Path(runs) / asked.id
    info = asked if resume is None else _agreed(_stored(folder), asked)
    between, pace = _networks(network or info.network, info.clock), _pace(federation, population, info)
    hold_on()
    with closing(make(federation, population, seed)) as trainer, closing(Store(folder)) as store:
        progress, secret = Together(progress or progress_for(), callbacks), noise or Noise.seeded(seed)
        with progress.following(info), one_thread():  # a second would wait by spinning, on a core that workers want
            Simulation(federation, population, info, store, trainer, between, pace, secret, faithful, progress).go()
        give_back()
        return Run.read(store, layout).publish()


def _on(workers: int, engine: MakeEngine) -> MakeEngine:
    """The engine on so many worker processes.

    Raises:
        AdmissionError: if there are fewer than one, or the engine is not one of Koinon's.
    """
    if workers < 1:
        raise AdmissionError(f"{workers} workers cannot train; give workers=1, this process, or more")
    if workers == 1:
        return engine
    if isinstance(engine, Attacked):
        return replace(engine, within=_on(workers, engine.within))
    if isinstance(engine, OnRay):
        return replace(engine, actors=workers)
    if engine is not InProcess:
        raise AdmissionError(f"this engine decides by itself where it trains; use workers=1, not {workers}")
    return partial(Pool, workers=workers)


def _check_population(federation: Federation, clients: int) -> None:
    """Raise AdmissionError if there are too few clients for what noise is to promise them."""
    check_enough(federation.strategy.stages, federation.strategy.sample, clients)
    hides_clients = any(protection.unit == "client" for protection in federation.protections)
    fault = fault_of_delta(federation.delta, clients) if hides_clients and federation.delta is not None else None
    if fault is not None:
        raise AdmissionError(fault)


def _stored(folder: Path) -> RunInfo:
    """The run in a folder.

    Raises:
        Unavailable: if there is none.
    """
    if (folder / "run.db").exists():
        with closing(Store(folder)) as store:
            if (info := store.info()) is not None:
                return info
    raise Unavailable(f"there is no run {folder.name} in {folder.parent}; `koinon runs list` shows those there are")


def _pace(federation: Federation, population: Population, info: RunInfo) -> Pace:
    """Who takes part when.

    Raises:
        AdmissionError: if the federation is asynchronous, and there is no clock or there are too few clients.
    """
    clock, asynchrony = info.clock, federation.strategy.asynchrony
    if clock is None:
        if asynchrony is not None:
            raise AdmissionError("clients that land when they are done need a clock; give clock=kn.Clock(devices=…)")
        return Timeless(population.ids)
    parts = Parts(federation, population, clock.devices)
    return InRounds(clock, parts, info.seed) if asynchrony is None else Flights(asynchrony, parts, info.seed)


def _agreed(stored: RunInfo, asked: RunInfo) -> RunInfo:
    """The stored run, if it is the one that was asked for.

    Raises:
        AdmissionError: if it is another.
    """
    if (stored.definition, stored.seed) != (asked.definition, asked.seed):
        raise AdmissionError(
            f"run {stored.id} has definition {stored.definition[:12]} and seed {stored.seed}, not "
            f"{asked.definition[:12]} and {asked.seed}; restore the app as it was, or start a new run"
        )
    if asked.clock not in (None, stored.clock):
        raise AdmissionError(f"run {stored.id} has another clock; leave it out, and the run keeps its own")
    return stored


def _networks(
    network: Network | Callable[[ClientId], Network] | None, clock: Clock | None
) -> Callable[[ClientId], Network | None]:
    """Each client's network.

    Raises:
        AdmissionError: if a clock says another.
    """
    if clock is not None:
        if network is not None:
            raise AdmissionError("the clock's devices have networks of their own; leave network= out")
        return lambda client: clock.devices(client).network
    if isinstance(network, Network) or network is None:
        return lambda client: network
    return network
