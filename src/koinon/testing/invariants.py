"""What must hold after every event, seen by someone who takes no part and trusts nobody's memory but the disk's."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch

from koinon.core.errors import KoinonError
from koinon.core.noise import Noise
from koinon.core.types import ClientId, canonical
from koinon.durable import checkpoint
from koinon.durable.history import RoundRecord
from koinon.durable.journal import Journal
from koinon.federation import Federation
from koinon.protocol import node as on_node
from koinon.protocol.events import Arrived, Disconnect, Event, RoundOpened, Send
from koinon.protocol.messages import (
    ATTEMPTS,
    CHUNK_BYTES,
    Accepted,
    Chunk,
    Finished,
    FromNode,
    Offer,
    Refused,
    Summing,
    Task,
)
from koinon.run.coordinator import Coordinator, Job, Out, Seal
from koinon.run.seat import Worn
from koinon.run.summing import contribution
from koinon.secure import messages
from koinon.secure.ring import Ring
from koinon.testing.network import Link
from koinon.testing.toy import LENGTH, decoded, handed_down
from koinon.update.codec import InMemory

_DISHONEST = ("digest", "NaN", "different", "bytes", "decoded", "was not asked")
"""Words in refusals that an honest node must never hear."""

_FAREWELLS = ("the run is over", "the run was aborted", "until next time")


class Broken(Exception):
    """An invariant does not hold."""


def require(holds: bool, what: str) -> None:
    """Raise unless it holds.

    Raises:
        Broken: saying what.
    """
    if not holds:
        raise Broken(what)


@dataclass
class Observer:
    """Remembers what was promised, and compares it with what is durable.

    Attributes:
        run: The run's folder.
        seed: Its seed.
        sealed: Files of the spool that are durable.
        models: The model after each closed round, as raw little-endian float32; 0 is the start.
        completed: Closed rounds.
        status: How the run stands.
        federation: What is trained.
    """

    run: Path
    seed: int
    sealed: set[Path] = field(default_factory=set)
    models: dict[int, bytes] = field(default_factory=dict)
    completed: int = 0
    status: str = "running"
    federation: Federation | None = None
    _updates: dict[str, bytes] = field(default_factory=dict)
    _offers: dict[tuple[ClientId, int], set[str]] = field(default_factory=dict)
    _trained: dict[tuple[ClientId, int], Offer] = field(default_factory=dict)
    _rings: dict[str, Ring] = field(default_factory=dict)
    _said: dict[tuple[ClientId, int, str], bytes] = field(default_factory=dict)
    _promised: set[tuple[int, ClientId]] = field(default_factory=set)
    _settled: dict[tuple[int, ClientId], tuple[str, bytes | None]] = field(default_factory=dict)
    _records: dict[int, str] = field(default_factory=dict)
    _database: sqlite3.Connection | None = None
    _downlink: Mapping[str, torch.Tensor] = field(default_factory=dict)
    _writes: int = -1

    def close(self) -> None:
        """Look no more."""
        if self._database is not None:
            self._database.close()

    def accused(self, link: Link, who: str, violation: KoinonError) -> None:
        """An end of a link says that the other broke the rules."""
        require(link.tampered, f"{who} accuses an honest peer: {violation}")

    def heard(self, node: ClientId, message: FromNode) -> None:
        """The server reads a message that a node wrote."""
        if isinstance(message, Offer):
            known = self._offers.get((node, message.round), set())
            require(message.update.digest in known, f"{node}'s offer for round {message.round} is not what it offered")

    @property
    def secret(self) -> bool:
        """Whether updates are added up secretly."""
        return self.federation is not None and self.federation.strategy.secure is not None

    def made(self, node: ClientId, event: on_node.Event | Worn, journal: Journal) -> None:
        """A node has worked."""
        if isinstance(event, Worn):
            if event.offer is None:
                return
            self._updates[event.offer.update.digest] = journal.masked.read_bytes()
            self._rings[event.offer.update.digest] = event.mask.ring
        elif isinstance(event, on_node.Trained):
            offer = event.offer
            self._trained[node, offer.round] = offer
            self._updates[offer.update.digest] = journal.update(offer.round).read_bytes()
            before = sum(1 for round in journal.entries() if round < offer.round)
            tally = offer.metrics["train_tally"].value
            require(tally == before + 1, f"{node}'s stages were carried through {tally} rounds, not {before + 1}")

    def offered(self, node: ClientId, offer: Offer) -> None:
        """A node offers an update."""
        offered = self._offers.setdefault((node, offer.round), set())
        offered.add(offer.update.digest)
        require(self.secret or len(offered) == 1, f"{node} offers a second, different update for round {offer.round}")
        plain = self._trained.get((node, offer.round))
        hidden = not self.secret or plain is None or plain.update.digest != offer.update.digest
        require(hidden and (not self.secret or not offer.metrics), f"{node} tells what only a sum may tell")

    def summing(self, node: ClientId, said: Summing) -> None:
        """A node says something in a secure sum: it never begins anew with other keys, signs once for an update, and never reveals
        both shares of anybody."""
        message = messages.decode(said.message, messages.FromClient, CHUNK_BYTES)
        if isinstance(message, messages.Advert):
            first = self._said.setdefault((node, message.round, "Advert"), said.message)
            require(first == said.message, f"{node} begins attempt {message.round} a second time, with other keys")
        if isinstance(message, messages.Agreed | messages.Reveal):
            kind, round = type(message).__name__, (message.round - 1) // ATTEMPTS + 1
            first = self._said.setdefault((node, round, kind), said.message)
            require(first == said.message, f"{node} says a second, different {kind} for its update of round {round}")
        if isinstance(message, messages.Reveal):
            both = message.self_masks.keys() & message.mask_keys.keys()
            require(not both, f"{node} reveals both shares of {', '.join(sorted(both))}")

    def uploaded(self, node: ClientId, chunk: Chunk) -> None:
        """A node sends a piece of an update."""
        whole = self._updates[chunk.digest]
        piece = whole[chunk.offset : chunk.offset + len(chunk.data)]
        require(piece == chunk.data, f"{node} sends other bytes than it made")

    def trains(self, round: int, start: torch.Tensor) -> None:
        """A node begins to train a round from a model."""
        if round - 1 in self.models:
            require(start.numpy().tobytes() == self.models[round - 1], f"round {round} is trained from another model")

    def worked(self, job: Job, event: Event, coordinator: Coordinator) -> None:
        """The server has done a job."""
        if isinstance(job, Seal) and isinstance(event, Arrived) and event.fault is None:
            self.sealed.add(coordinator.spool.path(job.round, job.node, job.update.digest))

    def server_does(self, out: Out) -> None:
        """The server is about to do something that others can see."""
        if isinstance(out, Disconnect):
            require(not out.final or out.reason.startswith(_FAREWELLS), f"sends {out.node} away: {out.reason}")
        if not isinstance(out, Send):
            return
        message, node = out.message, out.node
        if isinstance(message, Accepted):
            (outcome,) = self._rows("SELECT outcome FROM parts WHERE round = ? AND node = ?", message.round, node) or [
                ("nothing",)
            ]
            require(outcome[0] == "accepted", f"acknowledges {node}'s update for round {message.round}: {outcome[0]}")
            self._promised.add((message.round, node))
        elif isinstance(message, Refused):
            dishonest = [word for word in _DISHONEST if word in message.reason]
            require(not dishonest, f"refuses what an honest {node} did in round {message.round}: {message.reason}")
        elif isinstance(message, Task):
            self.look()
            require(message.round == self.completed + 1, f"asks for round {message.round} after {self.completed}")
            require(message.model.digest == self._digest(self.completed), f"round {message.round} has another start")
        elif isinstance(message, Finished):
            self.look()
            require(self.status == "finished", f"announces the end of a run that is {self.status}")
            require(message.model.digest == self._digest(self.completed), "the final model is another one")

    def check(self, writes: int) -> None:
        """Look at the disk if anything was written since the last look."""
        if writes != self._writes:
            self._writes = writes
            self.look()

    def look(self) -> None:
        """Compare what is on the disk with what was there before, and with what it must be."""
        info = self._rows("SELECT info FROM run")
        if not info:
            return
        status = msgspec.json.decode(info[0][0])["status"]
        require(self.status in ("running", status), f"a run that was {self.status} is {status}")
        self.status = status
        if not self.models:
            self.models[0] = self._model(0)
        self._look_at_parts()
        self._look_at_rounds()
        rounds = msgspec.json.decode(info[0][0])["rounds"]
        require(self.completed <= rounds, f"round {self.completed} of {rounds} is closed")
        require(status != "finished" or self.completed == rounds, f"finished after {self.completed} of {rounds} rounds")

    def look_back(self) -> None:
        """What must be on the disk when nothing moves any more, beside what must be there always."""
        evaluated = set(self._rows("SELECT round, node FROM evaluations"))
        if self.secret:
            evaluated |= {(round - 1, node) for round, node in self._settled}
        for (round, node), (outcome, _) in self._settled.items():
            held = outcome != "accepted" or (round - 1, node) in evaluated
            require(held, f"what {node} said of the model after round {round - 1} is lost")
        for (node,) in self._rows("SELECT node FROM handed_over"):
            require(self.secret or (self.completed, node) in evaluated, f"what {node} said of the final model is lost")
        left = [path.name for path in (self.run / "spool").glob("round-*") if int(path.name[6:]) <= self.completed]
        require(not left, f"the spool still has {left} after {self.completed} rounds")

    def _look_at_parts(self) -> None:
        present = {
            (round, node): (outcome, offer)
            for round, node, outcome, offer in self._rows("SELECT round, node, outcome, offer FROM parts")
        }
        for part, settled in self._settled.items():
            require(present.get(part) == settled, f"the part of {part[1]} in round {part[0]} was settled and is not so")
        self._settled = present

    def _look_at_rounds(self) -> None:
        rows = self._rows("SELECT round, opened, record FROM rounds ORDER BY round")
        closed = {round: record for round, _, record in rows if record is not None}
        for round, record in self._records.items():
            digest = None if round not in closed else msgspec.json.decode(closed[round])["digest"]
            require(digest == msgspec.json.decode(record)["digest"], f"round {round} was closed and is not as it was")
        require(list(closed) == list(range(1, len(closed) + 1)), f"closed rounds are {list(closed)}")
        for round, opened, _ in rows[len(closed) :]:
            require(round == len(closed) + 1, f"round {round} is open after {len(closed)} closed ones")
            require(msgspec.json.decode(opened)["round"] == round, "a round is not what it says")
        for round, opened, record in rows[: len(closed)]:
            if round not in self._records:
                self._recompute(
                    msgspec.json.decode(opened, type=RoundOpened), msgspec.json.decode(record, type=RoundRecord)
                )
        self._records, self.completed = closed, len(closed)

    def _recompute(self, opened: RoundOpened, record: RoundRecord) -> None:
        """The model after a round, from the model before it and the accepted updates as their nodes made them."""
        round = record.round
        counted = [part.client for part in record.participants if part.outcome == "accepted"]
        accepted = {
            node for (number, node), (outcome, _) in self._settled.items() if (number, outcome) == (round, "accepted")
        }
        promised = {node for number, node in self._promised if number == round}
        require(len(set(counted)) == len(counted), f"round {round} counts an update twice")
        require(set(counted) == accepted, f"round {round} counts {counted}, accepted are {canonical(accepted)}")
        require(promised <= accepted, f"round {round} forgets acknowledged updates: {canonical(promised - accepted)}")
        enough = len(counted) >= opened.needed or (self.secret and not counted)
        require(enough, f"round {round} closed with {len(counted)} of {opened.needed}")
        offers = {node: self._counted(round, node) for node in canonical(counted)}
        model = np.frombuffer(self.models[round - 1], "<f4")
        mean, expected = model + (self._sum(round, offers) if self.secret else self._mean(offers)), model
        if counted:
            self._downlink, change = handed_down(self._downlink, self.seed, round, torch.from_numpy(mean - model))
            expected = model + change.numpy()
        self.models[round] = self._model(round)
        require(
            self.models[round] == expected.tobytes(), f"the model after round {round} is not the mean as handed down"
        )
        require(record.digest == self._digest(round), f"the record of round {round} has another digest")

    def _counted(self, round: int, node: ClientId) -> Offer:
        """What a node offered that the round counts."""
        offer = self._settled[round, node][1]
        require(offer is not None, f"round {round} accepted {node} without an offer")
        found = msgspec.msgpack.decode(offer or b"", type=Offer)
        known = self._offers.get((node, round), set())
        require(found.update.digest in known, f"{node} never offered what round {round} has")
        return found

    def _mean(self, offers: Mapping[ClientId, Offer]) -> np.ndarray:
        """The mean of updates as their nodes made them."""
        total, weights = np.zeros(LENGTH), 0.0
        for offer in offers.values():
            total += decoded(self._updates[offer.update.digest]).numpy().astype(np.float64) * offer.weight
            weights += offer.weight
        return (total / (weights or 1.0)).astype(np.float32)

    def _sum(self, round: int, offers: Mapping[ClientId, Offer]) -> np.ndarray:
        """The same, rounded as in the ring: from what nodes trained, and from nothing that is masked."""
        assert self.federation is not None
        encoded, noise = [], Noise.seeded(self.seed)
        for node, offer in offers.items():
            trained, ring = self._trained[node, round], self._rings[offer.update.digest]
            update = InMemory(self._updates[trained.update.digest])
            encoded.append(contribution(self.federation, self.seed, noise, round, node, ring, update, trained))
        if not encoded:
            return np.zeros(LENGTH, np.float32)
        vector, (weight, *_) = ring.decode(sum(encoded[1:], encoded[0]), len(encoded))
        return (vector.numpy().astype(np.float64) / (weight or 1.0)).astype(np.float32)

    def _model(self, round: int) -> bytes:
        path = self.run / "checkpoints" / f"round-{round:06d}.safetensors"
        start, stop = checkpoint.model_span(path)
        return path.read_bytes()[start:stop]

    def _digest(self, round: int) -> str:
        return hashlib.sha256(self.models[round]).hexdigest()

    def _rows(self, statement: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        if self._database is None:
            if not (self.run / "run.db").exists():
                return []
            self._database = sqlite3.connect(self.run / "run.db", isolation_level=None)
        with contextlib.suppress(sqlite3.OperationalError):  # no tables yet
            return self._database.execute(statement, values).fetchall()
        return []
