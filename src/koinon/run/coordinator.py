"""The server without its sockets: it drives the protocol and owns what is durable.

The network server and the fault simulator give it events and carry out what it returns. Work that takes long
(adding up a round, checking a large update) comes back as a `Job`, to be done by `work` on any thread.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias, assert_never

import msgspec

from koinon.core.errors import AdmissionError, ClientFailed, ProtocolViolation
from koinon.core.noise import Noise
from koinon.core.statistics import Metrics, merge, values
from koinon.core.types import ClientId, finite
from koinon.durable import checkpoint
from koinon.durable.checkpoint import ServerState
from koinon.durable.deltas import HEAD
from koinon.durable.failpoint import reach
from koinon.durable.history import Participation, RoundRecord, RunInfo
from koinon.durable.secret import noise_of
from koinon.durable.spending import Release
from koinon.durable.spool import Spool
from koinon.durable.store import EVERYBODY, Durable, Evaluated, Store
from koinon.evaluate.evaluation import central, of_evaluation, of_training
from koinon.federation import Federation
from koinon.protocol import secret, session
from koinon.protocol.events import (
    Arrived,
    Close,
    Closed,
    Disconnect,
    Effect,
    Event,
    Expect,
    HandedOver,
    Persist,
    Record,
    RoundOpened,
    RunEnded,
    Send,
    Settled,
    Stream,
)
from koinon.protocol.messages import Blob, Chunk, Continue
from koinon.protocol.round import RoundState
from koinon.protocol.state import SessionState, Terms
from koinon.run.adding import Added, added
from koinon.run.allocator import give_back
from koinon.run.settings import Settings
from koinon.run.summing import merged
from koinon.run.traffic import Traffic
from koinon.run.work import advance, decision, draw, first_state, shared, suspicion
from koinon.secure.hosting import Host
from koinon.strategy.protection import check_enough
from koinon.update.codec import Codec, OnDisk, Shared
from koinon.update.stage import Told
from koinon.view.progress import Progress, Quiet


@dataclass(frozen=True)
class Seal:
    """Check a complete update and make it durable."""

    node: ClientId
    round: int
    update: Blob


Job: TypeAlias = Seal | Close
Out: TypeAlias = Send | Stream | Disconnect | Job


@dataclass
class _Reduced:
    digest: str
    metrics: dict[str, float]
    suspicion: dict[ClientId, Mapping[str, float]]
    decision: str
    training: Metrics
    evaluation: Metrics
    spoiled: str


@dataclass
class Coordinator:
    """The server of one run.

    Args:
        federation: What is trained.
        info: What the run is; begun in `store` if it has not begun.
        store: The run's durable record.
        settings: How to wait for nodes.
        clock: Seconds from any origin, for the history only; the protocol is told the time by ticks.
        progress: Told what happens.
        aside: Does what nobody waits for, on any thread; by default at once.
        identities: Nodes' public keys, by name, as they are when asked for; needed where updates are added up secretly.

    Raises:
        AdmissionError: if the federation cannot run on a network.
    """

    federation: Federation
    info: RunInfo
    store: Store
    settings: Settings
    clock: Callable[[], float]
    progress: Progress = field(default_factory=Quiet)
    aside: Callable[[Callable[[], None]], object] = lambda work: work()
    identities: Mapping[ClientId, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        codec, layout = self.federation.strategy.codec, self.shared(0).layout
        self.noise = noise_of(self.store.folder) if self.federation.protections else Noise.seeded(self.info.seed)
        secure = self.federation.scheme
        host = None if secure is None else Host(self.info.id, self.identities, secure, layout.length)
        self.spool = Spool(*self.spooled())
        measured = ((each.round, each.metrics) for each in self.store.history())
        self.course = self.federation.evaluation.course(self.info.rounds, measured)
        self.terms = Terms(
            rounds=self.store.completed() if self.course.enough() else self.info.rounds,
            draw=self._draw,
            update_bytes=codec.size(layout),
            host=host,
            secret_cohort=self.federation.strategy.secret_cohort,
            least=self.federation.strategy.least,
            **{name: getattr(self.settings, name) for name in Settings.__dataclass_fields__},
        )
        strategy = self.federation.strategy
        if strategy.asynchrony is not None:
            raise AdmissionError(
                f"{strategy.name} has no rounds, which a network needs; run it by kn.simulate, or take fedavg() with --over-select"
            )
        check_enough(strategy.stages, strategy.sample, self.settings.minimum_nodes)
        self.traffic: dict[ClientId, Traffic] = {}
        self._opened_at = self.clock()
        self._reduced: _Reduced | None = None
        self.state, self.unfinished = self._restored()

    def shared(self, round: int) -> Shared:
        """What a round's nodes and this server know alike of what travels."""
        return shared(self.federation, self.info.seed, round)

    def spooled(self) -> tuple[Path, Codec | None, Callable[[int], Shared], int]:
        """What the spool is made with: masked updates have no codec that could read them."""
        codec, layout, secure = self.federation.strategy.codec, self.shared(0).layout, self.federation.scheme
        if secure is None:
            return self.store.spool, codec, self.shared, codec.most(layout)
        return self.store.spool, None, self.shared, secure.most_bytes(layout.length)

    def handle(self, *events: Event) -> list[Out]:
        """Take events through the protocol; returns what is to be sent and done, in order.

        What they make durable is one transaction: a disk takes milliseconds for each, and many updates come at once.

        Raises:
            Unavailable: if something could not be made durable; then none of the events has happened.
        """
        state = self.state
        effects: list[Effect] = []
        closed: list[RoundState] = []
        for event in events:
            if isinstance(event, Closed) and state.round is not None and event.round == state.round.number:
                closed.append(secret.ended(state.round, event.spoiled)[0])
            state, more = session.step(self.terms, state, event)
            effects.extend(more)
        records = [self._record(round) for round in closed]
        self.store.persist(*records, *self._durable(effects), *self._told_in_sums(closed))
        for round, record in zip(closed, records, strict=True):
            self._closed(round, record)
        out = self._carried_out(effects)
        self.state = state
        return out

    def chunk(self, node: ClientId, chunk: Chunk) -> list[Out]:
        """Take a piece of an update.

        Raises:
            ProtocolViolation: if it is not the next piece of an expected update.
            Unavailable: if it cannot be written.
        """
        complete = self.spool.write(node, chunk)
        return [Seal(node, complete.round, complete.blob)] if complete is not None else []

    def work(self, job: Job) -> Event:
        """Do a job, on any thread; the event is for `handle`.

        Raises:
            OSError: if the disk is full or broken; nothing is lost, the job can be done again.
            ClientFailed: if the round's model, or its evaluation, cannot be computed; the run cannot go on.
        """
        match job:
            case Seal():
                return Arrived(job.node, job.round, job.update.digest, self.spool.seal(job.round, job.node, job.update))
            case Close():
                give_back()  # what the uploads left, so that it does not add to what this takes
                closed = self._add_up(job)
                give_back()
                return closed
            case _:
                assert_never(job)

    def gone(self, node: ClientId) -> None:
        """A node's connection is closed: what it was sending is expected no more."""
        self.spool.forget(node)

    def file(self, blob: Blob) -> tuple[Path, int]:
        """Where the present model lies, or a delta that leads to it: a file, and where in it."""
        for delta in self.state.deltas:
            if delta.change == blob:
                return self.store.deltas.path(delta.round), HEAD
        path = self.store.checkpoint(self.state.completed)
        return path, checkpoint.model_span(path)[0]

    def count(self, node: ClientId, up: int, down: int) -> None:
        """Bytes crossed a node's connection."""
        traffic = self.traffic.setdefault(node, Traffic())
        traffic.up += up
        traffic.down += down

    def _restored(self) -> tuple[SessionState, list[Out]]:
        """Begin the run, or go on where it was."""
        if self.store.info() is None:
            first = first_state(self.federation, self.info.seed)
            checkpoint.save(self.store.checkpoint(0), first)
            self.store.begin(self.info)
            return SessionState(self._blob(first), told=self._told(first)), []
        completed = self.store.completed()
        server = checkpoint.load(self.store.checkpoint(completed))
        model, told = self._blob(server), self._told(server)
        del server
        self.spool.drop(through=completed)
        open_round = self.store.open_round()
        deltas = self.store.deltas.leading_to(model, completed)
        state, effects = session.restored(
            self.terms, model, completed, self.info.status, open_round, self.store.nodes(), told, deltas
        )
        if state.round is not None:
            self.progress.opened(state.round.number, state.round.cohort)
        for settled in open_round[2] if open_round is not None else ():
            self.progress.replied(settled.round, settled.node, settled.outcome, settled.reason)
        self.store.persist(*self._durable(effects))
        return state, self._carried_out(effects)

    def _draw(self, round: int, sizes: Mapping[ClientId, int]) -> list[ClientId]:
        if (separation := self.federation.strategy.separation) > 1:
            recent = self.store.asked(since=round - separation + 1)
            sizes = {node: size for node, size in sizes.items() if node not in recent}
        return draw(self.federation, self.info.seed, self.noise, round, list(sizes), sizes)

    def _blob(self, state: ServerState) -> Blob:
        return Blob(checkpoint.digest(state.model), 4 * len(state.model))

    def _told(self, state: ServerState) -> Told:
        """What nodes need of the stages' states in the round after."""
        return self.federation.strategy.stages.tell(state.stages)

    def _durable(self, effects: Sequence[Effect]) -> Iterator[Durable]:
        """What effects ask to be made durable, and what nodes said of the model they received."""
        for effect in effects:
            if isinstance(effect, Persist):
                yield effect.record
                yield from self._evaluated(effect.record)

    def _told_in_sums(self, closed: Sequence[RoundState]) -> Iterator[Evaluated]:
        """What nodes said of the model before, where only the sum of it is known."""
        for round in closed:
            if self._reduced is not None and self._reduced.evaluation:
                yield Evaluated(round.number - 1, EVERYBODY, self._reduced.evaluation)

    def _evaluated(self, record: Record) -> Iterator[Evaluated]:
        if isinstance(record, Settled) and record.offer is not None and self.terms.host is None:
            if metrics := of_evaluation(record.offer.metrics):
                yield Evaluated(record.round - 1, record.node, metrics)
        elif isinstance(record, HandedOver) and record.message.metrics:
            yield Evaluated(self.state.completed, record.node, record.message.metrics)

    def _carried_out(self, effects: Sequence[Effect]) -> list[Out]:
        out: list[Out] = []
        for effect in effects:
            match effect:
                case Persist():
                    self._observe(effect.record)
                case Expect():
                    out.extend(self._expected(effect))
                case Send() | Stream() | Disconnect() | Close():
                    out.append(effect)
                case _:
                    assert_never(effect)
        return out

    def _expected(self, effect: Expect) -> list[Out]:
        round, node, update = effect.offer.round, effect.node, effect.offer.update
        if self.spool.expects(node, update):  # offered twice over one connection: its bytes are on their way
            return []
        try:
            offset = self.spool.expect(round, node, update)
        except ProtocolViolation as violation:
            return [Disconnect(node, str(violation), final=True)]
        return [Seal(node, round, update) if offset == update.size else Send(node, Continue(round, offset))]

    def _observe(self, record: Record) -> None:
        """Tell what is durable to those who watch."""
        if isinstance(record, RoundOpened):
            self._opened_at = self.clock()
            self.traffic = {}
            self.progress.opened(record.round, record.cohort)
        elif isinstance(record, Settled):
            self.progress.replied(record.round, record.node, record.outcome, record.reason)
        elif isinstance(record, RunEnded) and record.status == "finished" and record.reason:
            self.progress.note(f"no more rounds: {record.reason}")

    def _add_up(self, job: Close) -> Closed:
        learner = self.federation.learner
        state, change = checkpoint.load(self.store.checkpoint(job.round - 1)), None
        summed = self._added(job, state)
        if summed.weights or self.federation.protections:
            state, change = advance(
                self.federation, self.info.seed, self.noise, job.round, summed.state, summed.total, summed.weights
            )
            if not finite(state.model):
                raise ClientFailed(f"the model after round {job.round} is not finite; bound updates by kn.Clip")
        checkpoint.save(self.store.checkpoint(job.round), state)
        metrics = central(learner, self.federation.evaluation, state.model, job.round, self.info.rounds)
        model = self._blob(state)
        known = suspicion(self.federation, state, job.accepted), decision(self.federation, state)
        told = merged(summed.totals)
        self._reduced = _Reduced(
            model.digest, values(metrics or {}), *known, of_training(told), of_evaluation(told), summed.spoiled
        )
        delta = None if change is None else self.store.deltas.keep(job.round, self.state.model.digest, change)
        enough = self.course.after(job.round, self._reduced.metrics)
        return Closed(job.round, model, self._told(state), delta, summed.spoiled, enough)

    def _added(self, job: Close, state: ServerState) -> Added:
        """What the accepted nodes sent, as one update."""
        return added(self.federation, self.info.seed, job, self._arrived(job), state)

    def _arrived(self, job: Close) -> list[OnDisk]:
        """What the accepted nodes sent."""
        return [
            OnDisk(self.spool.path(job.round, node, offer.update.digest))
            for node, offer in zip(job.accepted, job.offers, strict=True)
        ]

    def _record(self, round: RoundState) -> RoundRecord:
        """What a round that is closed came to; to be made durable before anyone hears of its model."""
        assert self._reduced is not None
        reasons = {part.node: part.reason for part in self.store.settled(round.number)}
        offers = (round.offers[node] for node in round.accepted)
        training = merge((self._reduced.training, *(of_training(offer.metrics) for offer in offers)))
        return RoundRecord(
            round=round.number,
            digest=self._reduced.digest,
            seconds=self.clock() - self._opened_at,
            participants=tuple(self._participation(round, node, reasons.get(node, "")) for node in round.cohort),
            training=values(training),
            metrics=self._reduced.metrics,
            releases=Release.in_round(self.federation.protections, round.number),
            told=self.state.told,
            suspicion=self._reduced.suspicion,
            decision=self._reduced.decision,
        )

    def _closed(self, round: RoundState, record: RoundRecord) -> None:
        """A round's record is durable: what led to it is needed no more."""
        self.spool.end(through=round.number)
        self.aside(partial(self._sweep, round.number))
        assert self._reduced is not None
        offers = (round.offers[node] for node in round.accepted)
        if judged := merge((self._reduced.evaluation, *(of_evaluation(offer.metrics) for offer in offers))):
            self.progress.evaluated(round.number - 1, values(judged))
        self.progress.closed(record)
        reach("server between rounds")

    def _sweep(self, round: int) -> None:
        """Delete the updates of a closed round, and checkpoints that nobody reads any more; it may take long."""
        self.spool.drop(through=round)
        self.store.drop_checkpoints(before=round - 1)
        self.store.deltas.drop(round, needed=self.state.deltas)

    def _participation(self, round: RoundState, node: ClientId, reason: str) -> Participation:
        traffic = self.traffic.get(node, Traffic())
        part = Participation(
            node, round.outcomes.get(node) or "absent", reason, bytes_up=traffic.up, bytes_down=traffic.down
        )
        if part.outcome != "accepted":
            return part
        offer = round.offers[node]
        return msgspec.structs.replace(part, examples=offer.examples, weight=offer.weight, seconds=offer.seconds)
