"""A log that cannot be edited quietly: every entry holds the hash of the one before it."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime

from koinon.core.errors import VerificationFailed

SCHEMA = """
CREATE TABLE IF NOT EXISTS audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    event TEXT NOT NULL,
    fields TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
"""
_FIRST = "0" * 64


def append(database: sqlite3.Connection, event: str, fields: Mapping[str, object]) -> None:
    """Add an entry, inside the caller's transaction: the entry and what it tells of are durable together."""
    row = database.execute("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    number, before = (row[0] + 1, row[1]) if row else (1, _FIRST)
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    entry = (number, time, event, text, _hash(before, number, time, event, text))
    database.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?)", entry)


def verify(database: sqlite3.Connection) -> int:
    """Check the whole chain; returns the number of entries.

    Raises:
        VerificationFailed: naming the first entry that was edited, removed or inserted.
    """
    before, expected = _FIRST, 1
    for number, time, event, fields, hash in database.execute("SELECT * FROM audit ORDER BY number"):
        if number != expected:
            raise VerificationFailed(f"audit entry {expected} is missing")
        if hash != _hash(before, number, time, event, fields):
            raise VerificationFailed(f"audit entry {number} ({event}, {time}) or its predecessor was edited")
        before, expected = hash, expected + 1
    last = database.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'audit'").fetchone()[0] or 0
    if last != expected - 1:
        raise VerificationFailed(f"audit entries {expected} to {last} are missing")
    return expected - 1


def _hash(before: str, number: int, time: str, event: str, fields: str) -> str:
    return hashlib.sha256("\x1f".join((before, str(number), time, event, fields)).encode()).hexdigest()
