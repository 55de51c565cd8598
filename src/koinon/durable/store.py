"""What a run has made durable: one SQLite file (WAL) beside its checkpoints and its spool.

    runs/<id>/run.db            rounds, parts, history, audit log
    runs/<id>/checkpoints/      the server's state after a round
    runs/<id>/spool/            updates of the open round
    runs/<id>/deltas/           what the last rounds changed of the model

Every change of a table is in one transaction with its entry in the audit log.
"""

import hashlib
import json
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, assert_never

import msgspec

from koinon.core.errors import Unavailable, VerificationFailed
from koinon.core.statistics import Metrics, Statistic, merge, values
from koinon.core.types import ClientId, canonical
from koinon.durable import audit
from koinon.durable.deltas import Deltas
from koinon.durable.history import RoundRecord, RunInfo
from koinon.durable.transaction import transaction
from koinon.protocol.events import HandedOver, Record, RoundExtended, RoundOpened, RunEnded, Settled, Summed
from koinon.protocol.messages import Offer

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (info TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, opened TEXT NOT NULL, extended TEXT NOT NULL DEFAULT '[]', record TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS parts (
    round INTEGER NOT NULL, node TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, offer BLOB,
    PRIMARY KEY (round, node)
) STRICT;
CREATE TABLE IF NOT EXISTS summed (number INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS evaluations (
    round INTEGER NOT NULL, node TEXT NOT NULL, metrics TEXT NOT NULL, PRIMARY KEY (round, node)
) STRICT;
CREATE TABLE IF NOT EXISTS handed_over (node TEXT PRIMARY KEY) STRICT;
"""

EVERYBODY = ""
"""In place of a node's name: of all nodes of a round together, where only the sum of what they say is known."""

_T = TypeVar("_T")

OpenRound = tuple[RoundOpened, tuple[RoundExtended, ...], tuple[Settled, ...], tuple[Summed, ...]]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Record: how the model after `round` did on a node's own held-out data; 0 is the initial model."""

    round: int
    node: ClientId
    metrics: Metrics


Durable: TypeAlias = Record | RoundRecord | Evaluated
"""What is made durable; the checkpoint of a `RoundRecord` must be on the disk before it."""


class Store:
    """The durable record of one run.

    Args:
        folder: The run's folder; made if it is missing.

    Raises:
        Unavailable: if the database cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.spool = folder / "spool"
        self.deltas = Deltas(folder / "deltas")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(folder / "run.db", isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA + audit.SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"cannot open the run's store in {folder}: {error}") from error

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def begin(self, info: RunInfo) -> None:
        """Record a new run."""
        with self._transaction():
            self._database.execute("INSERT INTO run VALUES (?)", (_json(info),))
            audit.append(self._database, "run begun", msgspec.to_builtins(info))

    def info(self) -> RunInfo | None:
        """What the run is, or None when it has not begun."""
        row = self._database.execute("SELECT info FROM run").fetchone()
        return _parsed(row[0], type=RunInfo) if row else None

    def persist(self, *records: Durable) -> None:
        """Make records durable, all of them or none: one transaction, however many they are.

        Raises:
            Unavailable: if the disk is full or broken.
        """
        if not records:
            return
        with self._transaction():
            for record in records:
                self._persist(record)

    def close_round(self, record: RoundRecord) -> None:
        """Record a closed round: its checkpoint must be durable already."""
        self.persist(record)

    def note(self, event: str, **fields: object) -> None:
        """Write something that happened into the audit log."""
        with self._transaction():
            audit.append(self._database, event, fields)

    def evaluated(self, round: int, node: ClientId, metrics: Metrics) -> None:
        """Record how the model after `round` did on a node's own held-out data; 0 is the initial model."""
        if metrics:
            self.persist(Evaluated(round, node, metrics))

    def completed(self) -> int:
        """How many rounds are closed."""
        row = self._database.execute("SELECT max(round) FROM rounds WHERE record IS NOT NULL").fetchone()
        return row[0] or 0

    def open_round(self) -> OpenRound | None:
        """The records of the round that is open, or None."""
        row = self._database.execute("SELECT opened, extended FROM rounds WHERE record IS NULL").fetchone()
        if row is None:
            return None
        opened = _parsed(row[0], type=RoundOpened)
        extended = _parsed(row[1], type=tuple[RoundExtended, ...])
        return opened, extended, self.settled(opened.round), self._summed()

    def settled(self, round: int) -> tuple[Settled, ...]:
        """How nodes' parts in a round ended."""
        rows = self._database.execute("SELECT node, outcome, reason, offer FROM parts WHERE round = ?", (round,))
        return tuple(
            Settled(round, node, outcome, reason, msgspec.msgpack.decode(offer, type=Offer) if offer else None)
            for node, outcome, reason, offer in rows
        )

    def _summed(self) -> tuple[Summed, ...]:
        """What happened in the open round's secure sum, in order."""
        rows = self._database.execute("SELECT record FROM summed ORDER BY number")
        return tuple(msgspec.msgpack.decode(record, type=Summed) for (record,) in rows)

    def history(self) -> list[RoundRecord]:
        """The closed rounds in order, each with what nodes said of its model later."""
        rows = self._database.execute("SELECT record FROM rounds WHERE record IS NOT NULL ORDER BY round")
        records = [_parsed(row[0], type=RoundRecord) for row in rows.fetchall()]
        return [self._with_evaluations(record) for record in records]

    def nodes(self) -> dict[ClientId, bool]:
        """Every node that was ever asked -> whether it holds the final model."""
        holding = {row[0] for row in self._database.execute("SELECT node FROM handed_over")}
        return {node: node in holding for node in canonical(self.asked(since=1))}

    def asked(self, since: int) -> set[ClientId]:
        """Every node that was asked in a round from `since` on."""
        nodes: set[ClientId] = set()
        for opened, extended in self._database.execute(
            "SELECT opened, extended FROM rounds WHERE round >= ?", (since,)
        ):
            nodes.update(json.loads(opened)["cohort"])
            nodes.update(node for extension in json.loads(extended) for node in extension["added"])
        return nodes

    def checkpoint(self, round: int) -> Path:
        """Where the server's state after a round is; 0 is the state before the first."""
        return self.checkpoints / f"round-{round:06d}.safetensors"

    def drop_checkpoints(self, before: int, but: Collection[int] = ()) -> None:
        """Delete the states after rounds earlier than `before`, but for these; on any thread."""
        for path in self.checkpoints.glob("round-*.safetensors"):
            round = int(path.stem.partition("-")[2])
            if round < before and round not in but:
                path.unlink(missing_ok=True)

    def verify(self) -> int:
        """Check the audit chain, and the tables against it; returns the number of entries.

        Raises:
            VerificationFailed: naming the first thing that does not agree.
        """
        entries = audit.verify(self._database)
        present, logged = self._present(), self._logged()
        for what in sorted(present.keys() | logged.keys()):
            if present.get(what) != logged.get(what):
                raise VerificationFailed(f"{what} differs from what the audit log says of it")
        return entries

    def _present(self) -> dict[str, object]:
        """What the tables say."""
        found: dict[str, object] = {}
        for (info,) in self._database.execute("SELECT info FROM run"):
            found["what the run is"] = json.loads(info)
        for round, opened, extended, record in self._database.execute("SELECT * FROM rounds"):
            found[f"the opening of round {round}"] = [json.loads(opened), *json.loads(extended)]
            if record is not None:
                found[f"the record of round {round}"] = _hash(record)
        for round, node, outcome, reason, offer in self._database.execute("SELECT * FROM parts"):
            found[f"the part of {node} in round {round}"] = [outcome, reason, None if offer is None else _hash(offer)]
        for round, node, metrics in self._database.execute("SELECT * FROM evaluations"):
            found[f"the evaluation of round {round} by {node}"] = _hash(metrics)
        for (node,) in self._database.execute("SELECT node FROM handed_over"):
            found[f"the handing over to {node}"] = True
        return found

    def _logged(self) -> dict[str, object]:
        """What the tables must say, by the audit log; it may hold a record twice, and then the first counts."""
        found: dict[str, Any] = {}
        for event, text in self._database.execute("SELECT event, fields FROM audit ORDER BY number"):
            fields = json.loads(text)
            round, node = fields.get("round"), fields.get("node")
            match event:
                case "run begun":
                    found["what the run is"] = fields
                case "RunEnded":
                    found["what the run is"]["status"] = fields["status"]
                case "RoundOpened" if fields.get("attempt"):
                    found[f"the opening of round {round}"] = [fields]
                case "RoundOpened":
                    found.setdefault(f"the opening of round {round}", [fields])
                case "RoundExtended":
                    found[f"the opening of round {round}"].append(fields)
                case "RoundClosed":
                    found[f"the record of round {round}"] = fields["record"]
                case "Settled":
                    part = [fields["outcome"], fields["reason"], fields.get("offer")]
                    found.setdefault(f"the part of {node} in round {round}", part)
                case "Evaluated":
                    found[f"the evaluation of round {round} by {node}"] = fields["metrics"]
                case "HandedOver":
                    found[f"the handing over to {node}"] = True
        return found

    def _with_evaluations(self, record: RoundRecord) -> RoundRecord:
        rows = self._database.execute("SELECT node, metrics FROM evaluations WHERE round = ?", (record.round,))
        by_client = {node: _parsed(metrics, type=dict[str, Statistic]) for node, metrics in rows}
        if not by_client:
            return record
        federated = values(merge(by_client.values()))
        return msgspec.structs.replace(
            record,
            metrics=record.metrics or federated,
            federated=federated,
            by_client={node: values(metrics) for node, metrics in by_client.items() if node != EVERYBODY},
        )

    def _persist(self, record: Durable) -> None:
        match record:
            case RoundRecord():
                self._close(record)
                return
            case Evaluated():
                self._evaluate(record)
                return
            case Summed():
                self._execute("INSERT INTO summed (record) VALUES (?)", msgspec.msgpack.encode(record))
                return
            case RoundOpened():
                self._open(record)
            case RoundExtended():
                self._extend(record)
            case Settled():
                self._settle(record)
            case HandedOver():
                self._execute("INSERT OR IGNORE INTO handed_over VALUES (?)", record.node)
            case RunEnded():
                self._update_info(status=record.status)
            case _:
                assert_never(record)
        audit.append(self._database, type(record).__name__, _summary(record))

    def _open(self, record: RoundOpened) -> None:
        """A round, or another attempt of one, of whose sum nothing has happened yet."""
        text = _json(record)
        self._execute("INSERT OR IGNORE INTO rounds (round, opened) VALUES (?, ?)", record.round, text)
        if record.attempt:
            self._execute("UPDATE rounds SET opened = ? WHERE round = ?", text, record.round)
        self._execute("DELETE FROM summed")

    def _close(self, record: RoundRecord) -> None:
        text = _json(record)
        self._execute("UPDATE rounds SET record = ? WHERE round = ?", text, record.round)
        fields = {"round": record.round, "model": record.digest, "record": _hash(text)}
        audit.append(self._database, "RoundClosed", fields)

    def _evaluate(self, record: Evaluated) -> None:
        text = _json(record.metrics)
        self._execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?)", record.round, record.node, text)
        fields = {"round": record.round, "node": record.node, "metrics": _hash(text)}
        audit.append(self._database, "Evaluated", fields)

    def _extend(self, record: RoundExtended) -> None:
        (text,) = self._database.execute("SELECT extended FROM rounds WHERE round = ?", (record.round,)).fetchone()
        extended = [*json.loads(text), msgspec.to_builtins(record)]
        self._execute("UPDATE rounds SET extended = ? WHERE round = ?", json.dumps(extended), record.round)

    def _settle(self, record: Settled) -> None:
        offer = msgspec.msgpack.encode(record.offer) if record.offer is not None else None
        row = (record.round, record.node, record.outcome, record.reason, offer)
        self._execute("INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?)", *row)

    def _update_info(self, **changes: object) -> None:
        info = self.info()
        assert info is not None
        self._execute("UPDATE run SET info = ?", _json(msgspec.structs.replace(info, **changes)))

    def _execute(self, statement: str, *row: object) -> None:
        self._database.execute(statement, row)

    def _transaction(self) -> AbstractContextManager[None]:
        return transaction(self._database, f"the run's store in {self.folder}")


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _json(value: object) -> str:
    """As JSON, with NaN and Infinity for metrics that have no value, which msgspec would write as null."""
    return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))


def _parsed(text: str, type: type[_T]) -> _T:
    return msgspec.convert(json.loads(text), type)


def _summary(record: Record) -> Mapping[str, object]:
    fields = dict(msgspec.to_builtins(record))
    fields.pop("message", None)
    if isinstance(record, Settled) and record.offer is not None:
        fields["update"] = record.offer.update.digest
        fields["weight"] = record.offer.weight
        fields["offer"] = _hash(msgspec.msgpack.encode(record.offer))
    return fields
