"""A federation in one process: the same protocol, the same work, no network."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from koinon.aggregate.reducer import Matrix, Summing
from koinon.core.errors import AdmissionError, ClientFailed, Unavailable
from koinon.core.noise import Noise
from koinon.core.statistics import Statistic, merge, values
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population, Sizes
from koinon.durable import checkpoint
from koinon.durable.checkpoint import ServerState
from koinon.durable.history import Participation, RoundRecord, RunInfo
from koinon.durable.spending import Release
from koinon.durable.store import Store
from koinon.evaluate.evaluation import central, on_client
from koinon.federation import Federation
from koinon.privacy.admission import fault_of_delta
from koinon.protocol import session
from koinon.protocol.events import (
    Arrived,
    Close,
    Closed,
    Effect,
    Event,
    Joined,
    Persist,
    Received,
    RoundOpened,
    RunEnded,
    Send,
    Stream,
    Tick,
)
from koinon.protocol.lineage import leading
from koinon.protocol.messages import Blob, Continue, Delta, Failed, FromNode, Leave, Offer, Ready
from koinon.protocol.state import SessionState, Terms
from koinon.run.app import new_run_id
from koinon.run.coordinator import TRAINING
from koinon.run.engine import Engine, InProcess, MakeEngine
from koinon.run.result import Run
from koinon.run.traffic import Traffic, blob_bytes, message_bytes
from koinon.run.work import (
    ClientState,
    Local,
    advance,
    aggregated,
    decision,
    draw,
    first_state,
    held,
    shared,
    suspicion,
)
from koinon.strategy.protection import check_enough
from koinon.update.codec import InMemory
from koinon.update.stage import Told
from koinon.view.progress import Progress, progress_for

_NOWHERE = "0" * 64
"""Digest of an update that does not travel."""

_ANY = 1e-6
"""Quorum of a simulated round: one update closes it, since nobody who failed will come back."""


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
    progress: Progress | None = None,
) -> Run:
    """Run a federation in this process. Equal seeds give equal bits.

    Args:
        federation: What is trained.
        population: The clients.
        seed: Of everything that is drawn.
        workers: Processes that train clients; must be 1, this one, in this version.
        runs: Folder of the runs' folders.
        name: What the run's id and its report call it: an app's file, for instance.
        clients: The number of clients that was asked for, to be recorded with the run.
        resume: Id of a run to go on with.
        engine: Makes, from federation, population and seed, what trains the clients.
        progress: Told what happens; by default a live view in terminals and notebooks.

    Raises:
        AdmissionError: if a run to be resumed is of another definition or seed.
        ClientFailed: if every client of a round failed.
    """
    if workers != 1:
        raise AdmissionError(f"this version trains clients in one process; use workers=1, not {workers}")
    _check_population(federation, len(population.ids))
    layout = federation.learner.layout
    info = RunInfo(
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
    )
    folder = Path(runs) / info.id
    if resume is not None and not (folder / "run.db").exists():
        raise Unavailable(f"there is no run {resume} in {runs}; `koinon runs list` shows those there are")
    store = Store(folder)
    info = _agreed(store.info(), info)
    progress = progress or progress_for()
    try:
        with progress.following(info):
            _Simulation(federation, population, info, store, engine(federation, population, seed), progress).go()
        return Run.read(store, layout).publish()
    finally:
        store.close()


def _check_population(federation: Federation, clients: int) -> None:
    """Raise AdmissionError if there are too few clients for what noise is to promise them."""
    check_enough(federation.strategy.stages, federation.strategy.sample, clients)
    hides_clients = any(protection.unit == "client" for protection in federation.protections)
    fault = fault_of_delta(federation.delta, clients) if hides_clients and federation.delta is not None else None
    if fault is not None:
        raise AdmissionError(fault)


def _agreed(stored: RunInfo | None, asked: RunInfo) -> RunInfo:
    if stored is None:
        return asked
    if (stored.definition, stored.seed) != (asked.definition, asked.seed):
        raise AdmissionError(
            f"run {stored.id} has definition {stored.definition[:12]} and seed {stored.seed}, not "
            f"{asked.definition[:12]} and {asked.seed}; restore the app as it was, or start a new run"
        )
    return stored


class _Simulation:
    """Drives the session's state machine in place of a network."""

    def __init__(
        self,
        federation: Federation,
        population: Population,
        info: RunInfo,
        store: Store,
        engine: Engine,
        progress: Progress,
    ) -> None:
        self.federation = federation
        self.population = population
        self.info = info
        self.store = store
        self.engine = engine
        self.progress = progress
        self.terms = Terms(info.rounds, self._draw, minimum_nodes=0, quorum=_ANY, least=federation.strategy.least)
        self.server = self._restored()
        completed = store.completed()
        self._held: dict[ClientId, str] = {}
        model = Blob(checkpoint.digest(self.server.model), 4 * info.parameters)
        status: Literal["finished", "running"] = "finished" if completed >= info.rounds else "running"
        self.state = SessionState(model, completed, status, told=self._told())
        if federation.strategy.downlink is not None:
            self._recall(model)

    def go(self) -> None:
        """Run the rounds that are left."""
        cohort: Sequence[ClientId] = ()
        effects = self.step(Tick(0.0))
        while self.state.status == "running":
            record = next(effect.record for effect in effects if isinstance(effect, Persist))
            assert isinstance(record, RoundOpened)
            cohort, effects = record.cohort, self._round(record)
        if self.federation.evaluation.federated and cohort:
            for client in cohort:
                metrics = on_client(self.federation.learner, self.server.model, self.population[client])
                self.store.evaluated(self.info.rounds, client, metrics)

    def _restored(self) -> ServerState:
        if self.store.info() is not None:
            return checkpoint.load(self.store.checkpoint(self.store.completed()))
        first = first_state(self.federation, self.info.seed)
        checkpoint.save(self.store.checkpoint(0), first)
        self.store.begin(self.info)
        return first

    def _recall(self, model: Blob) -> None:
        """Which client holds which model, where what a client is sent depends on it."""
        deltas: tuple[Delta, ...] = ()
        for delta in self.store.deltas.kept(through=self.state.completed):
            deltas = leading(deltas, delta, model)
        self.state = replace(self.state, deltas=deltas)
        bases = {delta.round: delta.base for delta in deltas}
        for record in self.store.history():
            for part in record.participants:
                if part.outcome == "accepted" and record.round in bases:
                    self._held[part.client] = bases[record.round]

    def ready(self, client: ClientId) -> Ready:
        """What a client says that it holds."""
        held = self._held.get(client)
        return Ready() if held is None else Ready(held, self.state.model.size)

    def showed(self, client: ClientId) -> None:
        """A client has trained from the present model, and so it holds it."""
        if self.federation.strategy.downlink is not None:
            self._held[client] = self.state.model.digest

    def _draw(self, round: int, present: Mapping[ClientId, int]) -> list[ClientId]:
        """The cohort, from the whole population: simulated clients are here when they are asked."""
        seed, population = self.info.seed, self.population
        return draw(self.federation, seed, Noise.seeded(seed), round, population.ids, Sizes(population))

    def step(self, event: Event) -> tuple[Effect, ...]:
        """Take an event through the protocol."""
        self.state, effects = session.step(self.terms, self.state, event)
        return effects

    def _round(self, opened: RoundOpened) -> tuple[Effect, ...]:
        """Train a round that was opened; the effects are of its closing."""
        began = time.perf_counter()
        self.store.persist(opened)
        self.progress.opened(opened.round, opened.cohort)
        gathered, delta = _Gathered(self, opened.round), None
        if opened.cohort:
            states = {client: self._client_state(client) for client in opened.cohort}
            model, told = self.server.model, self.state.told
            for client, result in self.engine.train(opened.round, opened.cohort, model, states, told):
                gathered.take(client, result)
            if not gathered.closing:
                raise ClientFailed(gathered.shortage())
        if opened.cohort or self.federation.protections:
            self.server, delta = gathered.advanced(self.server)
        return self._close(opened, gathered, delta, began)

    def _close(
        self, opened: RoundOpened, gathered: "_Gathered", delta: Delta | None, began: float
    ) -> tuple[Effect, ...]:
        """Make the round durable, then tell the session."""
        learner, evaluation = self.federation.learner, self.federation.evaluation
        metrics = central(learner, evaluation, self.server.model, opened.round, self.info.rounds)
        checkpoint.save(self.store.checkpoint(opened.round), self.server)
        digest = checkpoint.digest(self.server.model)
        record = RoundRecord(
            round=opened.round,
            digest=digest,
            seconds=time.perf_counter() - began,
            participants=tuple(gathered.parts),
            training=values(gathered.training),
            metrics=values(metrics or {}),
            releases=Release.in_round(self.federation.protections, opened.round),
            told=self.state.told,
            suspicion=suspicion(self.federation, self.server, opened.cohort),
            decision=decision(self.federation, self.server),
        )
        self.store.close_round(record)
        self.store.drop_checkpoints(before=opened.round)
        if gathered.evaluated:
            self.progress.evaluated(opened.round - 1, values(gathered.evaluated))
        self.progress.closed(record)
        effects = self.step(Closed(opened.round, Blob(digest, self.state.model.size), self._told(), delta))
        bases = {delta.base for delta in self.state.deltas}
        self._held = {client: base for client, base in self._held.items() if base in bases}
        self.store.deltas.drop(before=min((delta.round for delta in self.state.deltas), default=opened.round))
        for effect in effects:
            if isinstance(effect, Persist) and isinstance(effect.record, RunEnded):
                self.store.persist(effect.record)
        return effects

    def _told(self) -> Told:
        return self.federation.strategy.stages.tell(self.server.stages)

    def _client_state(self, client: ClientId) -> ClientState:
        prefix = f"{client}/"
        clients = self.server.clients
        return {name.removeprefix(prefix): tensor for name, tensor in clients.items() if name.startswith(prefix)}


class _Gathered:
    """A simulated round's updates: added up as they come where the rule allows, otherwise kept."""

    def __init__(self, simulation: _Simulation, round: int) -> None:
        self._simulation = simulation
        self._round = round
        self._reducer = simulation.federation.strategy.reducer
        self._length = simulation.federation.carried
        self._sum = self._reducer.init(self._length) if isinstance(self._reducer, Summing) else None
        self._rows: list[Vector] = []
        self._weights: list[float] = []
        self._states: dict[str, torch.Tensor] = {}
        self.training: dict[str, Statistic] = {}
        self.evaluated: dict[str, Statistic] = {}
        self.parts: list[Participation] = []
        self.closing = False

    def take(self, client: ClientId, result: Local | ClientFailed) -> None:
        """Take one client's result through the protocol."""
        step = self._simulation.step
        asked = step(Joined(client, self._simulation.ready(client)))
        if isinstance(result, ClientFailed):
            said: FromNode = Failed(self._round, str(result))
            effects = step(Received(client, said))
            traffic = _traffic(client, (said,), (*asked, *effects))
            self._failed(client, str(result), traffic)
        else:
            blob = Blob(_NOWHERE, len(result.encoded))
            said = Offer(self._round, blob, result.weight, result.examples, dict(result.metrics), 0.0)
            step(Received(client, said))
            effects = step(Arrived(client, self._round, _NOWHERE))
            traffic = _traffic(client, (said,), (*asked, Send(client, Continue(self._round, 0)), *effects))
            traffic.up += blob_bytes(blob, 0, node=True)
            self._simulation.showed(client)
            self._add(client, result, traffic)
        step(Received(client, Leave("")))
        self.closing |= any(isinstance(effect, Close) for effect in effects)

    def _failed(self, client: ClientId, reason: str, traffic: Traffic) -> None:
        self.parts.append(Participation(client, "failed", reason, bytes_up=traffic.up, bytes_down=traffic.down))
        self._simulation.progress.replied(self._round, client, "failed", reason)

    def shortage(self) -> str:
        """Why the round cannot close."""
        failed = [f"{part.client}: {part.reason}" for part in self.parts if part.outcome != "accepted"]
        reasons = f", e.g. {'; '.join(failed[:3])}" if failed else ""
        if not self._weights:
            return f"every client of round {self._round} failed{reasons}"
        rule, least = type(self._reducer).__name__, self._simulation.terms.least
        return f"round {self._round} has {len(self._weights)} updates, and {rule} needs {least}{reasons}"

    def advanced(self, server: ServerState) -> tuple[ServerState, Delta | None]:
        """The server's next state and, where the way down has a codec, what leads to its model, kept on the disk."""
        federation, seed = self._simulation.federation, self._simulation.info.seed
        if isinstance(self._reducer, Summing):
            total = self._reducer.finish(self._sum)
        else:
            updates = torch.stack(self._rows) if self._rows else torch.empty(0, self._length)
            accepted = [part.client for part in self.parts if part.outcome == "accepted"]
            rows = Matrix(updates, self._weights)
            server, total = aggregated(federation, seed, self._round, server, accepted, rows)
        clients = {**server.clients, **self._states}
        server, change = advance(federation, seed, Noise.seeded(seed), self._round, server, total, self._weights)
        base = self._simulation.state.model.digest
        delta = None if change is None else self._simulation.store.deltas.keep(self._round, base, change)
        return replace(server, clients=clients), delta

    def _add(self, client: ClientId, local: Local, traffic: Traffic) -> None:
        federation = self._simulation.federation
        known = shared(federation, self._simulation.info.seed, self._round)
        decoded = federation.strategy.codec.decode(InMemory(local.encoded), known, 0, known.length)
        rows = held(federation, Matrix(decoded[None], [local.weight]))
        (row,), (weight,) = rows.columns(0, self._length), rows.weights
        if isinstance(self._reducer, Summing):
            self._sum = self._reducer.add(self._sum, row, weight)
        else:
            self._rows.append(row)
        self._weights.append(weight)
        self._states |= {f"{client}/{name}": tensor for name, tensor in local.state.items()}
        trained = {name: value for name, value in local.metrics.items() if name.startswith(TRAINING)}
        evaluated = {name: value for name, value in local.metrics.items() if name not in trained}
        short = {name.removeprefix(TRAINING): value for name, value in trained.items()}
        self.training = merge((self.training, short))
        self.evaluated = merge((self.evaluated, evaluated))
        self._simulation.store.evaluated(self._round - 1, client, evaluated)
        self._simulation.progress.replied(self._round, client, "accepted")
        self.parts.append(
            Participation(
                client,
                "accepted",
                examples=local.examples,
                weight=local.weight,
                bytes_up=traffic.up,
                bytes_down=traffic.down,
            )
        )


def _traffic(client: ClientId, said: Sequence[FromNode], effects: Sequence[Effect]) -> Traffic:
    """Bytes that would have crossed a client's connection."""
    traffic = Traffic(up=sum(message_bytes(message, node=True) for message in said))
    for effect in effects:
        if isinstance(effect, Send) and effect.node == client:
            traffic.down += message_bytes(effect.message, node=False)
        elif isinstance(effect, Stream) and effect.node == client:
            traffic.down += blob_bytes(effect.blob, effect.offset, node=False)
    return traffic
