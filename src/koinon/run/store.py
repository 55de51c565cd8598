"""What a run has made durable: one SQLite file (WAL) beside its checkpoints and its spool.

    runs/<id>/run.db            rounds, parts, history, audit log
    runs/<id>/checkpoints/      the server's state after a round
    runs/<id>/spool/            updates of the open round

Every change of a table is in one transaction with its entry in the audit log.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from koinon.core.errors import Unavailable, VerificationFailed
from koinon.core.statistics import Metrics, Statistic, merge, values
from koinon.core.types import ClientId
from koinon.protocol.events import HandedOver, Record, RoundExtended, RoundOpened, RunEnded, Settled
from koinon.protocol.messages import Offer
from koinon.run import audit
from koinon.run.history import RoundRecord, RunInfo

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (info TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, opened TEXT NOT NULL, extended TEXT NOT NULL DEFAULT '[]', record TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS parts (
    round INTEGER NOT NULL, node TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, offer BLOB,
    PRIMARY KEY (round, node)
) STRICT;
CREATE TABLE IF NOT EXISTS evaluations (
    round INTEGER NOT NULL, node TEXT NOT NULL, metrics TEXT NOT NULL, PRIMARY KEY (round, node)
) STRICT;
CREATE TABLE IF NOT EXISTS handed_over (node TEXT PRIMARY KEY) STRICT;
"""

OpenRound = tuple[RoundOpened, tuple[RoundExtended, ...], tuple[Settled, ...]]


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
        return msgspec.json.decode(row[0], type=RunInfo) if row else None

    def persist(self, record: Record) -> None:
        """Make a record of the protocol durable.

        Raises:
            Unavailable: if the disk is full or broken.
        """
        with self._transaction():
            match record:
                case RoundOpened():
                    self._execute(
                        "INSERT OR IGNORE INTO rounds (round, opened) VALUES (?, ?)", record.round, _json(record)
                    )
                case RoundExtended():
                    self._extend(record)
                case Settled():
                    self._settle(record)
                case HandedOver():
                    self._execute("INSERT OR IGNORE INTO handed_over VALUES (?)", record.node)
                case RunEnded():
                    self._update_info(status=record.status)
            audit.append(self._database, type(record).__name__, _summary(record))

    def close_round(self, record: RoundRecord) -> None:
        """Record a closed round: its checkpoint must be durable already."""
        text = _json(record)
        with self._transaction():
            self._execute("UPDATE rounds SET record = ? WHERE round = ?", text, record.round)
            fields = {"round": record.round, "model": record.digest, "record": _hash(text)}
            audit.append(self._database, "RoundClosed", fields)

    def note(self, event: str, **fields: object) -> None:
        """Write something that happened into the audit log."""
        with self._transaction():
            audit.append(self._database, event, fields)

    def evaluated(self, round: int, node: ClientId, metrics: Metrics) -> None:
        """Record how the model after `round` did on a node's own held-out data; 0 is the initial model."""
        if metrics:
            text = _json(metrics)
            with self._transaction():
                self._execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?)", round, node, text)
                fields = {"round": round, "node": node, "metrics": _hash(text)}
                audit.append(self._database, "Evaluated", fields)

    def completed(self) -> int:
        """How many rounds are closed."""
        row = self._database.execute("SELECT max(round) FROM rounds WHERE record IS NOT NULL").fetchone()
        return row[0] or 0

    def open_round(self) -> OpenRound | None:
        """The records of the round that is open, or None."""
        row = self._database.execute("SELECT opened, extended FROM rounds WHERE record IS NULL").fetchone()
        if row is None:
            return None
        opened = msgspec.json.decode(row[0], type=RoundOpened)
        extended = msgspec.json.decode(row[1], type=tuple[RoundExtended, ...])
        return opened, extended, self.settled(opened.round)

    def settled(self, round: int) -> tuple[Settled, ...]:
        """How nodes' parts in a round ended."""
        rows = self._database.execute("SELECT node, outcome, reason, offer FROM parts WHERE round = ?", (round,))
        return tuple(
            Settled(round, node, outcome, reason, msgspec.msgpack.decode(offer, type=Offer) if offer else None)
            for node, outcome, reason, offer in rows
        )

    def history(self) -> list[RoundRecord]:
        """The closed rounds in order, each with what nodes said of its model later."""
        rows = self._database.execute("SELECT record FROM rounds WHERE record IS NOT NULL ORDER BY round")
        records = [msgspec.json.decode(row[0], type=RoundRecord) for row in rows.fetchall()]
        return [self._with_evaluations(record) for record in records]

    def nodes(self) -> dict[ClientId, bool]:
        """Every node that was ever asked -> whether it holds the final model."""
        nodes: set[ClientId] = set()
        for opened, extended in self._database.execute("SELECT opened, extended FROM rounds"):
            nodes.update(json.loads(opened)["cohort"])
            nodes.update(node for extension in json.loads(extended) for node in extension["added"])
        holding = {row[0] for row in self._database.execute("SELECT node FROM handed_over")}
        return {node: node in holding for node in nodes}

    def checkpoint(self, round: int) -> Path:
        """Where the server's state after a round is; 0 is the state before the first."""
        return self.checkpoints / f"round-{round:06d}.safetensors"

    def drop_checkpoints(self, before: int) -> None:
        """Delete the states after rounds earlier than `before`."""
        for path in self.checkpoints.glob("round-*.safetensors"):
            if int(path.stem.partition("-")[2]) < before:
                path.unlink()

    def verify(self) -> int:
        """Check the audit chain, and the tables against it; returns the number of entries.

        Raises:
            VerificationFailed: naming the first thing that does not agree.
        """
        entries = audit.verify(self._database)
        self._agree(
            "SELECT 'round ' || round, record FROM rounds WHERE record IS NOT NULL",
            "SELECT 'round ' || (fields ->> 'round'), fields ->> 'record' FROM audit WHERE event = 'RoundClosed'",
        )
        self._agree(
            "SELECT 'the evaluation of round ' || round || ' by ' || node, metrics FROM evaluations",
            "SELECT 'the evaluation of round ' || (fields ->> 'round') || ' by ' || (fields ->> 'node'), "
            "fields ->> 'metrics' FROM audit WHERE event = 'Evaluated' ORDER BY number",
        )
        self._agree(
            "SELECT 'the part of ' || node || ' in round ' || round, outcome || reason FROM parts",
            "SELECT 'the part of ' || (fields ->> 'node') || ' in round ' || (fields ->> 'round'), "
            "(fields ->> 'outcome') || (fields ->> 'reason') FROM audit WHERE event = 'Settled' ORDER BY number DESC",
            hashed=False,
        )
        return entries

    def _agree(self, table: str, log: str, hashed: bool = True) -> None:
        present = {what: _hash(text) if hashed else text for what, text in self._database.execute(table)}
        logged = dict(self._database.execute(log).fetchall())
        for what in sorted(present.keys() | logged.keys()):
            if present.get(what) != logged.get(what):
                raise VerificationFailed(f"{what} differs from what the audit log says of it")

    def _with_evaluations(self, record: RoundRecord) -> RoundRecord:
        rows = self._database.execute("SELECT node, metrics FROM evaluations WHERE round = ?", (record.round,))
        by_client = {node: msgspec.json.decode(metrics, type=dict[str, Statistic]) for node, metrics in rows}
        if not by_client:
            return record
        federated = values(merge(by_client.values()))
        return msgspec.structs.replace(
            record,
            metrics=record.metrics or federated,
            federated=federated,
            by_client={node: values(metrics) for node, metrics in by_client.items()},
        )

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

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise Unavailable(f"cannot write to the run's store in {self.folder}: {error}") from error


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _summary(record: Record) -> Mapping[str, object]:
    fields = dict(msgspec.to_builtins(record))
    fields.pop("message", None)
    if (offer := fields.pop("offer", None)) is not None:
        fields["update"] = offer["update"]["digest"]
        fields["weight"] = offer["weight"]
    return fields
