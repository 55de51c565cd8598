"""What a node's own data has spent of its privacy, in every run: written before an update leaves, never taken back.

<home>/ledger.db    one row for each round that was charged, and the chain of hashes that shows any edit
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from koinon.core.errors import Unavailable, VerificationFailed
from koinon.durable import audit
from koinon.durable.spending import Release
from koinon.durable.transaction import transaction
from koinon.strategy.protection import Protection

_SCHEMA = """
CREATE TABLE IF NOT EXISTS charges (
    run TEXT NOT NULL, place TEXT NOT NULL, round INTEGER NOT NULL, release TEXT NOT NULL,
    PRIMARY KEY (run, place, round)
) STRICT;
"""


class Ledger:
    """The ledger of one node.

    Args:
        folder: The node's home.

    Raises:
        Unavailable: if it cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        try:
            self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA + audit.SCHEMA)
        except sqlite3.Error as error:
            raise Unavailable(f"cannot open the ledger {self.path}: {error}") from error

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def charge(self, run: str, round: int, protections: Sequence[Protection]) -> None:
        """Write down that the round's releases may leave; durable on return. A second time it changes nothing.

        What the server's noise covers is charged for all rounds since the last charge: with secret sampling a round in
        which this node is not asked is a release about it as well.

        Raises:
            Unavailable: if the disk is full or broken; then nothing may leave.
        """
        with transaction(self._database, f"the ledger {self.path}"):
            for release in self._due(run, round, protections):
                row = (run, release.place, round, _json(release))
                self._database.execute("INSERT INTO charges VALUES (?, ?, ?, ?)", row)
                audit.append(self._database, "Charged", _fields(run, round, release))

    def after(self, run: str, round: int, protections: Sequence[Protection]) -> list[Release]:
        """What will be spent in all once the round is charged."""
        return [*self.releases(), *self._due(run, round, protections)]

    def releases(self) -> list[Release]:
        """Everything that was charged."""
        return [release for _, _, release in self.charges()]

    def charges(self) -> list[tuple[str, int, Release]]:
        """Everything that was charged, with its run and round, in order."""
        rows = self._database.execute("SELECT run, round, release FROM charges ORDER BY rowid")
        return [(run, round, msgspec.json.decode(release, type=Release)) for run, round, release in rows]

    def verify(self) -> int:
        """Check that nothing was edited; returns the number of entries.

        Raises:
            VerificationFailed: naming the first thing that does not agree.
        """
        entries = audit.verify(self._database)
        logged = [fields for (fields,) in self._database.execute("SELECT fields FROM audit ORDER BY number")]
        if [_sorted(_fields(*charge)) for charge in self.charges()] != [_sorted(json.loads(text)) for text in logged]:
            raise VerificationFailed(f"the charges in {self.path} differ from what its log says of them")
        return entries

    def _due(self, run: str, round: int, protections: Sequence[Protection]) -> Iterator[Release]:
        for protection in protections:
            before = [
                (charged, release)
                for owner, charged, release in self.charges()
                if owner == run and release.place == protection.place
            ]
            if any(charged >= round if protection.place == "server" else charged == round for charged, _ in before):
                continue
            times = 1
            if protection.place == "server":
                times = protection.times(round) - sum(release.times for _, release in before)
            if times:
                yield Release.of(protection, times)


def _fields(run: str, round: int, release: Release) -> dict[str, object]:
    return {"run": run, "round": round, "release": msgspec.to_builtins(release)}


def _sorted(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, sort_keys=True)


def _json(release: Release) -> str:
    return msgspec.json.encode(release).decode()
