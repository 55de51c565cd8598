"""Drives the session's state machine in place of a network, round by round."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from koinon.core.errors import ClientFailed
from koinon.core.network import Network
from koinon.core.noise import Noise
from koinon.core.statistics import values
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population, Sizes
from koinon.durable import checkpoint
from koinon.durable.checkpoint import ServerState
from koinon.durable.history import RoundRecord, RunInfo
from koinon.durable.spending import Release
from koinon.durable.store import Evaluated, Store
from koinon.evaluate.evaluation import central, on_client
from koinon.federation import Federation
from koinon.protocol.events import (
    Closed,
    Effect,
    Persist,
    RoundOpened,
    RunEnded,
    Tick,
)
from koinon.protocol.messages import Blob
from koinon.protocol.state import Terms
from koinon.run.clock import Missed, Pace, Timed
from koinon.run.conversation import Conversation
from koinon.run.engine import Engine, path_of
from koinon.run.gathered import Gathered, LandedGathered
from koinon.run.secretly import gathered as gather
from koinon.run.work import (
    ClientState,
    Local,
    decision,
    draw,
    first_state,
    kept,
    linked,
    suspicion,
)
from koinon.update.fitted import Link
from koinon.update.stage import Told
from koinon.view.progress import Progress

_ANY = 1e-6
"""Quorum of a simulated round: one update closes it, since nobody who failed will come back."""


class Simulation:
    """One run, from where it stands to its end.

    Args:
        federation: What is trained.
        population: The clients.
        info: What the run is.
        store: Its durable record.
        engine: What trains the clients.
        network: Each client's, or None.
        pace: Who takes part when; it has not begun.
        noise: The server's, of the whole run.
        faithful: Whether secure sums are made with all of their cryptography.
        progress: Told what happens.
    """

    def __init__(
        self,
        federation: Federation,
        population: Population,
        info: RunInfo,
        store: Store,
        engine: Engine,
        network: Callable[[ClientId], Network | None],
        pace: Pace,
        noise: Noise,
        faithful: bool,
        progress: Progress,
    ) -> None:
        self.federation = federation
        self.population = population
        self.info = info
        self.store = store
        self.engine = engine
        self.network = network
        self.noise = noise
        self.faithful = faithful
        self.progress = progress
        self.path = ""
        self.server = self._restored()
        self.pace, self.timed = pace, Timed([])
        history = store.history()
        pace.resume(history)
        model = Blob(checkpoint.digest(self.server.model), 4 * info.parameters)
        self.course = federation.evaluation.course(info.rounds, ((each.round, each.metrics) for each in history))
        rounds = store.completed() if self.course.enough() else info.rounds
        terms = Terms(rounds, self._draw, minimum_nodes=0, quorum=_ANY, least=federation.strategy.least)
        self.conversation = Conversation(federation, store, terms, model, self._told())

    def go(self) -> None:
        """Run the rounds that are left."""
        if self.conversation.state.status == "finished" and self.info.status == "running":
            # It was cut when its last round was durable, and that this was the last one was not.
            self.store.persist(RunEnded("finished", self.course.enough()))
        cohort: Sequence[ClientId] = ()
        effects = self.conversation.step(Tick(0.0))
        while self.conversation.state.status == "running":
            record = next(effect.record for effect in effects if isinstance(effect, Persist))
            assert isinstance(record, RoundOpened)
            cohort, effects = record.cohort, self._round(record)
        if self.federation.evaluation.federated and self.federation.strategy.secure is None:
            self.store.persist(*(said for said in map(self._final, cohort) if said.metrics))

    def _final(self, client: ClientId) -> Evaluated:
        """What a client says of the final model."""
        own = kept(self._client_state(client))
        metrics = on_client(self.federation.learner, self.server.model, self.population[client], own)
        return Evaluated(self.conversation.state.completed, client, metrics)

    def _restored(self) -> ServerState:
        if self.store.info() is not None:
            return checkpoint.load(self.store.checkpoint(self.store.completed()))
        first = first_state(self.federation, self.info.seed)
        checkpoint.save(self.store.checkpoint(0), first)
        self.store.begin(self.info)
        return first

    def _draw(self, round: int, present: Mapping[ClientId, int]) -> list[ClientId]:
        """The cohort, from the whole population: simulated clients are here when they are asked."""
        sizes = Sizes(self.population)
        self.timed = self.pace.round(
            round, lambda ids: draw(self.federation, self.info.seed, self.noise, round, ids, sizes)
        )
        return self.timed.cohort

    def _round(self, opened: RoundOpened) -> tuple[Effect, ...]:
        """Train a round that was opened; the effects are of its closing."""
        began = time.perf_counter()
        self.store.persist(opened)
        self.progress.opened(opened.round, opened.cohort)
        self._note_path(opened)
        gathered = self._gathered(opened)
        change, closing = None, not opened.cohort
        for client, result in self._trained(opened):
            closing |= self._take(opened.round, gathered, client, result)
        if not closing or not gathered.complete():
            raise ClientFailed(gathered.shortage())
        if opened.cohort or self.federation.protections:
            self.server, change = gathered.advanced(self.server, self.noise)
        return self._close(opened, gathered, change, began)

    def _gathered(self, opened: RoundOpened) -> Gathered:
        """What takes the round's updates."""
        federation, seed, asynchrony = self.federation, self.info.seed, self.federation.strategy.asynchrony
        if asynchrony is None:
            return gather(federation, seed, opened.round, opened.cohort, self.faithful)
        return LandedGathered(federation, asynchrony, seed, opened.round, self.timed.begun, self._model)

    def _trained(self, opened: RoundOpened) -> Iterator[tuple[ClientId, Local | ClientFailed | Missed]]:
        """What each client made, those that began from the same model together."""
        missed, told = self.timed.missed, self.conversation.state.told
        yield from missed.items()
        left = [client for client in opened.cohort if client not in missed]
        begun = {client: self.timed.begun.get(client, opened.round - 1) for client in left}
        for version in sorted(set(begun.values())):
            cohort = [client for client in left if begun[client] == version]
            states = {client: self._client_state(client) for client in cohort}
            yield from self.engine.train(opened.round, cohort, self._model(version), states, told)

    def _model(self, after: int) -> Vector:
        """The model after a round that somebody may still train from."""
        if after == self.conversation.state.completed:
            return self.server.model
        return checkpoint.load_model(self.store.checkpoint(after))

    def _note_path(self, opened: RoundOpened) -> None:
        """Record how clients are trained, where that is new."""
        if opened.cohort and (path := path_of(self.federation, len(opened.cohort))) != self.path:
            self.path = path
            self.store.note("clients are trained", round=opened.round, how=path)

    def _take(self, round: int, gathered: Gathered, client: ClientId, result: Local | ClientFailed | Missed) -> bool:
        """Take one client's result; whether the round can be added up."""
        if isinstance(result, Missed):
            traffic, closing = self.conversation.reply(round, client, ClientFailed(result.reason))
            gathered.miss(client, result, traffic)
            self.progress.replied(round, client, result.outcome, result.reason)
            return closing
        said = result if isinstance(result, ClientFailed) else gathered.offer(result)
        traffic, closing = self.conversation.reply(round, client, said)
        gathered.take(client, result, traffic)
        if isinstance(result, ClientFailed):
            self.progress.replied(round, client, "failed", str(result))
        else:
            self.progress.replied(round, client, "accepted")
        return closing

    def _close(
        self, opened: RoundOpened, gathered: Gathered, change: bytes | memoryview | None, began: float
    ) -> tuple[Effect, ...]:
        """Make the round durable, then tell the session."""
        learner, evaluation, state = self.federation.learner, self.federation.evaluation, self.conversation.state
        delta = None if change is None else self.store.deltas.keep(opened.round, state.model.digest, change)
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
            told=state.told,
            suspicion=suspicion(self.federation, self.server, opened.cohort),
            decision=decision(self.federation, self.server),
            network_s=self._waited(gathered),
            clock_s=self.timed.closed_s,
        )
        self.store.persist(record, *gathered.records())
        self.store.drop_checkpoints(before=opened.round, but=self.timed.needed)
        if gathered.evaluated:
            self.progress.evaluated(opened.round - 1, values(gathered.evaluated))
        self.progress.closed(record)
        model = Blob(digest, state.model.size)
        enough = self.course.after(opened.round, record.metrics)
        effects = self.conversation.closed(Closed(opened.round, model, self._told(), delta, enough=enough))
        for effect in effects:
            if isinstance(effect, Persist) and isinstance(effect.record, RunEnded):
                self.store.persist(effect.record)
                if effect.record.reason:
                    self.progress.note(f"no more rounds: {effect.record.reason}")
        return effects

    def _waited(self, gathered: Gathered) -> float | None:
        """Seconds that the slowest client's bytes would have been under way; None where there is no network."""
        accepted = [part for part in gathered.parts if part.outcome == "accepted" and self.info.clock is None]
        between = [(self.network(part.client), part) for part in accepted]
        return max(
            (net.seconds(part.bytes_up, part.bytes_down) for net, part in between if net is not None), default=None
        )

    def _told(self) -> Told:
        return self.federation.strategy.stages.tell(self.server.stages)

    def _client_state(self, client: ClientId) -> ClientState:
        prefix = f"{client}/"
        clients = self.server.clients
        own = {name.removeprefix(prefix): tensor for name, tensor in clients.items() if name.startswith(prefix)}
        network = self.network(client)
        return linked(own, None if network is None else Link(network.up.bytes_per_s, network.round_trip_s))
