"""A node without its socket: it drives the node's protocol and owns what is durable there.

`koinon join` and the fault simulator give it events and carry out what it returns. Training comes back as a
`Job`, to be done by `work` on any thread.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, assert_never

from koinon.attack.attack import Attack
from koinon.core.errors import ClientFailed, KoinonError, PolicyRefused, Unavailable
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.statistics import Metrics
from koinon.core.types import ClientId
from koinon.data.dataset import DataSet
from koinon.durable import checkpoint
from koinon.durable.failpoint import reach
from koinon.durable.journal import Journal
from koinon.durable.ledger import Ledger
from koinon.durable.peers import Peers
from koinon.durable.secret import noise_of
from koinon.evaluate.evaluation import on_client
from koinon.federation import Federation
from koinon.protocol import node
from koinon.protocol.messages import Accepted, Chunk, Declined, Failed, Offer, Task
from koinon.protocol.node import (
    Contribute,
    Download,
    Effect,
    Evaluate,
    Evaluated,
    Event,
    GaveUp,
    Hear,
    Lost,
    NodeState,
    Quit,
    Received,
    Remember,
    Say,
    TakeBack,
    TakePart,
    Train,
    Trained,
    Upload,
)
from koinon.run.attacked import lied
from koinon.run.gauge import Gauge
from koinon.run.inbox import Inbox
from koinon.run.policy import Policy
from koinon.run.seat import Mask, Seat, Worn
from koinon.run.work import OF_A_ROUND, kept, linked, train
from koinon.secure.shamir import Entropy
from koinon.view.log import log
from koinon.wire.identity import Identity

Job: TypeAlias = Train | Mask | Evaluate
Out: TypeAlias = Say | Upload | Quit | Job


@dataclass
class Participant:
    """One node in one run.

    Args:
        federation: The definition on the node's own disk.
        name: What the server calls this node.
        seed: The run's seed.
        data: The node's own data.
        journal: Its durable memory.
        policy: What its owner allows.
        clock: Seconds from any origin, to tell how long training took.
        attack: How the node lies, to test a federation; None: it does not.
        run: Id of the run.
        identity: The node's own; without one it cannot take part where updates are added up secretly.
        entropy: Source of its keys there.
    """

    federation: Federation
    name: ClientId
    seed: int
    data: DataSet
    journal: Journal
    policy: Policy
    clock: Callable[[], float]
    attack: Attack | None = None
    run: str = ""
    identity: Identity | None = None
    entropy: Entropy = os.urandom

    def __post_init__(self) -> None:
        secret = self.federation.strategy.secure is not None
        self.state = NodeState(journal=self.journal.entries(), secret=secret)
        self._protections = self.federation.protections
        self._noise, self._ledger = Noise.seeded(self.seed), None
        if self._protections:
            self._noise, self._ledger = noise_of(self.journal.folder), Ledger(self.journal.folder.parent)
        silent = secret or bool(self._protections)
        told = 0 if silent else len(self.data.train)  # how many examples there are is of the data, too
        self._inbox = Inbox(self.federation, self.seed, self.journal, told)
        self._gauge = Gauge(self.clock)
        self._seat = self._seated()

    def connected(self) -> list[Out]:
        """The server has let the node in."""
        return self.handle(self._inbox.holding())

    def _seated(self) -> Seat | None:
        secure = self.federation.scheme
        if secure is None or self.identity is None:
            return None
        peers = Peers(self.journal.folder.parent / "peers.json", self.policy.identities)
        return Seat(
            self.federation,
            secure,
            self.run,
            self.name,
            self.seed,
            self.identity,
            self.journal,
            peers,
            self.entropy,
            self._noise,
        )

    def handle(self, event: Event | Worn) -> list[Out]:
        """Take an event through the protocol; returns what is to be sent and done, in order.

        Raises:
            Unavailable: if something could not be made durable; then the event has not happened.
        """
        if isinstance(event, Worn):
            masked = self._seat.masked(event) if self._seat is not None else None
            return [] if masked is None else self.handle(masked)
        state, effects = node.step(self.state, event)
        before, self.state = self.state, state
        try:
            out = self._carried_out(effects)
        except KoinonError:
            self.state = before
            raise
        self._measure(event, out)
        return out

    def chunk(self, chunk: Chunk) -> list[Out]:
        """Take a piece of a model, or of what leads to it.

        Raises:
            Unavailable: if the whole model turns out damaged; connect again to get it anew.
        """
        event = self._inbox.take(chunk)
        return [] if event is None else self.handle(event)

    def export(self) -> Path:
        """Write the final model as named tensors; returns where."""
        assert self.state.final is not None
        path = self.journal.folder / "model.safetensors"
        model = self.journal.model(self.state.final.digest)
        checkpoint.export(path, self.federation.learner.layout, model)
        return path

    def path(self, offer: Offer) -> Path:
        """Where the bytes of an offer are."""
        return self.journal.masked if offer == self.state.masked else self.journal.update(offer.round)

    def work(self, job: Job) -> Event | Worn:
        """Do a job, on any thread; the event is for `handle`.

        Raises:
            OSError, Unavailable: if the disk is full or broken; the job can be done again.
        """
        match job:
            case Train():
                return self._train(job.task)
            case Mask():
                return self._mask(job)
            case Evaluate():
                return Evaluated(job.model.digest, self._judged(job.model.digest))
            case _:
                assert_never(job)

    def _carried_out(self, effects: Sequence[Effect]) -> list[Out]:
        out: list[Out] = []
        for effect in effects:
            match effect:
                case Download():
                    event = self._inbox.begin(effect)
                    out.extend([] if event is None else self.handle(event))
                case TakeBack():
                    self.journal.take_back(effect.round, OF_A_ROUND)
                case Remember():
                    self.journal.remember(effect.round, effect.entry)
                case TakePart() | Hear() | Contribute():
                    out.extend(self._summed(effect))
                case Say() | Upload() | Quit() | Train() | Evaluate():
                    out.append(effect)
                case _:
                    assert_never(effect)
        return out

    def _summed(self, effect: TakePart | Hear | Contribute) -> list[Out]:
        """Take what is of a secure sum to the seat."""
        if self._seat is None:  # nothing is added up secretly by its definition, or it has no identity
            return []
        out: list[Out] = []
        for said in self._seat.take(effect):
            out.extend(self.handle(said) if isinstance(said, GaveUp) else [said])
        return out

    def _mask(self, mask: Mask) -> Event | Worn:
        assert self._seat is not None
        try:
            return self._seat.work(mask)
        except ClientFailed as failure:
            log("round {round} failed: {reason}", logging.WARNING, round=mask.offer.round, reason=str(failure))
            return GaveUp(Failed(mask.offer.round, str(failure)))

    def _measure(self, event: Event, out: Sequence[Out]) -> None:
        """Tell the gauge what becomes of an update."""
        match event:
            case Lost():
                self._gauge.lost()
            case Received(Accepted()):
                self._gauge.accepted()
        for effect in out:
            match effect:
                case Say(Offer()):
                    self._gauge.offered()
                case Upload():
                    self._gauge.wanted(effect.offer.update.size - effect.offset)

    def _train(self, task: Task) -> Event:
        log("round {round}: training", round=task.round, cohort=task.cohort)
        try:
            self.policy.check_task(task.round, task.cohort)
            self._check_separation(task.round)
            self._charge(task.round)
            offer = self._offer(task)
            self._check_spent(task.round)
            return Trained(offer)
        except PolicyRefused as refusal:
            log("round {round} declined: {reason}", logging.WARNING, round=task.round, reason=str(refusal))
            return GaveUp(Declined(task.round, str(refusal)))
        except ClientFailed as failure:
            log("round {round} failed: {reason}", logging.WARNING, round=task.round, reason=str(failure))
            # A library's own words can quote the data: the owner reads them in the log, the server does not.
            cause = type(failure.__cause__).__name__ if failure.__cause__ is not None else None
            return GaveUp(Failed(task.round, f"{cause} in training; see the node's log" if cause else str(failure)))
        except FileNotFoundError:  # the server has gone on, and its next model has taken this one's place
            return GaveUp(Failed(task.round, f"the model of round {task.round} is no longer here"))
        except (OSError, Unavailable):
            raise  # the disk is full or broken: the job can be done again
        except Exception as error:  # a fault in the app must not take the node down; the server is told
            reason = f"{type(error).__name__}: {error}"[:500]
            log("round {round} failed: {reason}", logging.ERROR, round=task.round, reason=reason)
            return GaveUp(Failed(task.round, f"{type(error).__name__} in training; see the node's log"))

    def _judged(self, digest: str) -> Metrics:
        """The metrics of the final model on this node's held-out data, where nodes are to tell any by themselves."""
        if not self.federation.evaluation.federated or self.federation.strategy.secure is not None:
            return {}
        state = self.journal.state(before=max(self.state.journal, default=0) + 1) or {}
        return on_client(self.federation.learner, self.journal.model(digest), self.data, kept(state))

    def _check_separation(self, round: int) -> None:
        """Raise PolicyRefused if this node took part too recently for the noise to cover it."""
        last = max((number for number in self.state.journal if number < round), default=None)
        if last is not None and round - last < self.federation.strategy.separation:
            raise PolicyRefused(
                f"noise covers a node once in {self.federation.strategy.separation} rounds, and this one was in round {last}"
            )

    def _charge(self, round: int) -> None:
        """Write down what the round will release, unless the owner forbids it; before there is anything to release."""
        if self._ledger is not None:
            self._check_spent(round)
            self._ledger.charge(self.journal.folder.name, round, self._protections)

    def _check_spent(self, round: int) -> None:
        """Raise PolicyRefused if what is spent in all, this round included, is more than the owner allows."""
        if self._ledger is not None:
            self.policy.check_spent(self._ledger.after(self.journal.folder.name, round, self._protections))

    def _offer(self, task: Task) -> Offer:
        began = self.clock()
        state = linked(self.journal.state(before=task.round) or {}, self._gauge.link)
        model = self.journal.model(task.model.digest)
        reach("node mid training")
        noise, told = self._noise, task.told
        data, attack = self.data, self.attack
        if attack is not None:
            data = attack.poisoned(data, generator(self.seed, "poison", 0, self.name))
        local = train(self.federation, self.seed, noise, task.round, self.name, model, data, state, told)
        if attack is not None:
            local = lied(self.federation, self.seed, task.round, self.name, local, attack)
        update = self.journal.keep(task.round, local.encoded, local.state)
        seconds = self.clock() - began
        return Offer(task.round, update, local.weight, local.examples, dict(local.metrics), seconds)
