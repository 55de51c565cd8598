"""Which identities a server lets in: approved keys under names, one-time tokens, revocations.

One SQLite file in the server's home. `koinon enroll` changes it while a server runs; the server sees the change
before it handles the next message.
"""

import hashlib
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from koinon.core.errors import AdmissionError, ProtocolViolation, Unavailable
from koinon.durable.transaction import transaction
from koinon.protocol.messages import Name
from koinon.wire.channel import Applicant
from koinon.wire.identity import key_text

TOKEN_DAYS = 7
"""Days for which a token can be used."""

MOST_KNOCKS = 1000
"""Unknown keys that are remembered for the operator to see."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS nodes (name TEXT PRIMARY KEY, key BLOB NOT NULL UNIQUE, status TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS tokens (hash TEXT PRIMARY KEY, name TEXT NOT NULL, expires TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS knocks (key BLOB PRIMARY KEY, time TEXT NOT NULL) STRICT;
"""

Status: TypeAlias = Literal["approved", "revoked", "waiting"]


@dataclass(frozen=True)
class Entry:
    """One identity; `name` is empty while it waits for approval."""

    name: str
    key: bytes
    status: Status


class Roster:
    """The identities that one server knows.

    Args:
        path: The SQLite file; made if it is missing.

    Raises:
        Unavailable: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"cannot open the roster {path}: {error}") from error
        self._version = self._data_version()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def approve(self, key: bytes, name: str) -> None:
        """Let an identity in, under a name.

        Raises:
            AdmissionError: if the name is malformed, or belongs to another key.
        """
        check_name(name)
        with transaction(self._database, "the roster"):
            self._enter(key, name)

    def invite(self, name: str) -> str:
        """A token with which one unknown identity can enrol itself under `name`, once, within `TOKEN_DAYS`.

        Raises:
            AdmissionError: if the name is malformed.
        """
        check_name(name)
        token = secrets.token_urlsafe(24)
        expires = datetime.now(UTC) + timedelta(days=TOKEN_DAYS)
        with transaction(self._database, "the roster"):
            self._database.execute("INSERT INTO tokens VALUES (?, ?, ?)", (_hash(token), name, expires.isoformat()))
        return token

    def revoke(self, name: str) -> None:
        """Let an identity in no more; a connected one is cut at once.

        Raises:
            AdmissionError: if there is no such name.
        """
        with transaction(self._database, "the roster"):
            changed = self._database.execute("UPDATE nodes SET status = 'revoked' WHERE name = ?", (name,)).rowcount
        if not changed:
            raise AdmissionError(f"there is no node {name}; `koinon enroll list` shows those there are")

    def entries(self) -> list[Entry]:
        """All identities: those with names, then those that wait."""
        named = self._database.execute("SELECT name, key, status FROM nodes ORDER BY name")
        waiting = self._database.execute(
            "SELECT '', key, 'waiting' FROM knocks WHERE key NOT IN (SELECT key FROM nodes) ORDER BY time"
        )
        return [Entry(*row) for row in (*named, *waiting)]

    @property
    def keys(self) -> Mapping[str, bytes]:
        """The identity behind each name, as it is when it is asked for."""
        return _Keys(self._database)

    def admit(self, applicant: Applicant) -> str:
        """The name under which an identity may come in.

        Raises:
            ProtocolViolation: if it may not; the message is for the node.
        """
        row = self._database.execute("SELECT name, status FROM nodes WHERE key = ?", (applicant.key,)).fetchone()
        if row is not None:
            name, status = row
            if status == "revoked":
                raise ProtocolViolation(f"the identity of {name} was revoked; make a new one and have it approved")
            return str(name)
        if applicant.token:
            return self._redeem(applicant)
        self._knock(applicant.key)
        text = key_text(applicant.key)
        raise ProtocolViolation(
            f"this identity is not approved; the operator can run: koinon enroll approve {text} NAME"
        )

    def allowed(self, key: bytes) -> bool:
        """Whether an identity is approved now."""
        row = self._database.execute("SELECT status FROM nodes WHERE key = ?", (key,)).fetchone()
        return row is not None and row[0] == "approved"

    def changed(self) -> bool:
        """Whether another process has changed the roster since the last call; costs microseconds."""
        before, self._version = self._version, self._data_version()
        return before != self._version

    def _redeem(self, applicant: Applicant) -> str:
        with transaction(self._database, "the roster"):
            row = self._database.execute(
                "DELETE FROM tokens WHERE hash = ? RETURNING name, expires", (_hash(applicant.token),)
            ).fetchone()
            if row is None or datetime.fromisoformat(row[1]) < datetime.now(UTC):
                raise ProtocolViolation(
                    "the enrolment token is unknown, used or expired; ask the operator for a new one"
                )
            try:
                self._enter(applicant.key, row[0])
            except AdmissionError as error:
                raise ProtocolViolation(str(error)) from error
        return str(row[0])

    def _enter(self, key: bytes, name: str) -> None:
        row = self._database.execute("SELECT key FROM nodes WHERE name = ?", (name,)).fetchone()
        if row is not None and row[0] != key:
            raise AdmissionError(f"{name} is another identity's name; choose a new one, a name is never given twice")
        known = self._database.execute("SELECT name, status FROM nodes WHERE key = ?", (key,)).fetchone()
        if known is not None and known[1] == "revoked":
            raise AdmissionError(f"the identity of {known[0]} was revoked; it cannot come back, make a new one")
        if known is not None and known[0] != name:
            raise AdmissionError(f"this identity is {known[0]}; an identity has one name")
        self._database.execute("INSERT OR IGNORE INTO nodes VALUES (?, ?, 'approved')", (name, key))
        self._database.execute("DELETE FROM knocks WHERE key = ?", (key,))

    def _knock(self, key: bytes) -> None:
        with transaction(self._database, "the roster"):
            self._database.execute(
                "INSERT OR IGNORE INTO knocks SELECT ?, ? WHERE (SELECT count(*) FROM knocks) < ?",
                (key, datetime.now(UTC).isoformat(), MOST_KNOCKS),
            )

    def _data_version(self) -> int:
        return int(self._database.execute("PRAGMA data_version").fetchone()[0])


class _Keys(Mapping[str, bytes]):
    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __getitem__(self, name: str) -> bytes:
        row = self._database.execute("SELECT key FROM nodes WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        return bytes(row[0])

    def __iter__(self) -> Iterator[str]:
        return (name for (name,) in self._database.execute("SELECT name FROM nodes ORDER BY name").fetchall())

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM nodes").fetchone()[0])


def check_name(name: str) -> None:
    """Refuse what cannot be a node's name.

    Raises:
        AdmissionError: naming what can.
    """
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise AdmissionError(
            f"{name!r} cannot be a node's name; use up to 64 letters, digits, dots, dashes and underscores"
        ) from None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
