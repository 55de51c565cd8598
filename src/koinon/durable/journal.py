"""What a node must not forget: the rounds it has trained, in one SQLite file beside the updates themselves.

<home>/<run>/journal.db     rounds, what they were trained from, what was made of them
<home>/<run>/update-N       the update's bytes, until the server has acknowledged them
<home>/<run>/masked         the same, masked, where updates are added up secretly
<home>/<run>/sum            the node's part in that: its keys of the round, what it has heard and signed
<home>/<run>/state-N        the stages' state after round N, and what the codec remembers
<home>/<run>/model-DIGEST   the model that was received, or the part of it that was
"""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from koinon.core.errors import Unavailable
from koinon.core.types import Vector
from koinon.durable.checkpoint import read_span, replacing
from koinon.protocol.messages import Blob, Chunk, Offer
from koinon.protocol.node import Entry

_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (round INTEGER PRIMARY KEY, model TEXT NOT NULL, offer BLOB) STRICT;
"""


class Journal:
    """The durable memory of one node in one run.

    Args:
        folder: Made if it is missing, readable by its owner alone.

    Raises:
        Unavailable: if it cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(folder / "journal.db", isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"cannot open the node's journal in {folder}: {error}") from error

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def entries(self) -> dict[int, Entry]:
        """The rounds that were trained."""
        rows = self._database.execute("SELECT round, model, offer FROM journal")
        return {
            round: Entry(model, msgspec.msgpack.decode(offer, type=Offer) if offer else None)
            for round, model, offer in rows
        }

    def remember(self, round: int, entry: Entry) -> None:
        """Write an entry, durable on return; an ended one's update is deleted.

        Raises:
            Unavailable: if the disk is full or broken.
        """
        offer = msgspec.msgpack.encode(entry.offer) if entry.offer is not None else None
        with self._on_disk():
            self._database.execute("INSERT OR REPLACE INTO journal VALUES (?, ?, ?)", (round, entry.model, offer))
            if offer is None:
                self.update(round).unlink(missing_ok=True)
                self.masked.unlink(missing_ok=True)

    def update(self, round: int) -> Path:
        """Where the update of a round is."""
        return self.folder / f"update-{round:06d}"

    def keep(self, round: int, encoded: bytes | memoryview, state: Mapping[str, torch.Tensor]) -> Blob:
        """Write an update and the client's state after it, durable on return; one that no server will ask for goes."""
        owed = {row[0] for row in self._database.execute("SELECT round FROM journal WHERE offer IS NOT NULL")}
        for path in self.folder.glob("update-*"):
            if int(path.name.partition("-")[2]) not in owed:
                path.unlink()
        with replacing(self.update(round)) as temporary:
            temporary.write_bytes(encoded)
        if state:
            with replacing(self._state(round)) as temporary:
                save_file(dict(state), temporary)
        return Blob(hashlib.sha256(encoded).hexdigest(), len(encoded))

    @property
    def masked(self) -> Path:
        """Where the masked update is."""
        return self.folder / "masked"

    def keep_masked(self, data: bytes) -> Blob:
        """Write a masked update, durable on return."""
        with replacing(self.masked) as temporary:
            temporary.write_bytes(data)
        return Blob(hashlib.sha256(data).hexdigest(), len(data))

    def sum(self) -> bytes | None:
        """What `keep_sum` wrote last."""
        path = self.folder / "sum"
        return path.read_bytes() if path.exists() else None

    def keep_sum(self, state: bytes) -> None:
        """Write the node's part in a secure sum, durable on return.

        Raises:
            Unavailable: if the disk is full or broken.
        """
        with self._on_disk(), replacing(self.folder / "sum") as temporary:
            temporary.write_bytes(state)

    def state(self, before: int) -> dict[str, torch.Tensor] | None:
        """The client's state after the last trained round before this one; None if there is none."""
        kept = self._states(before)
        if not kept:
            return None
        last = max(kept)
        for path in self.folder.glob("state-*"):
            if int(path.name.partition("-")[2]) < last:
                path.unlink()
        return load_file(kept[last])

    def take_back(self, round: int, prefix: str | tuple[str, ...]) -> None:
        """What of the state after a round has a name with this prefix, or one of them, is again as before; durable on return.

        Raises:
            Unavailable: if the disk is full or broken.
        """
        path = self._state(round)
        after = load_file(path) if path.exists() else {}
        if not any(name.startswith(prefix) for name in after):
            return
        earlier = self._states(before=round)
        before = load_file(earlier[max(earlier)]) if earlier else {}
        state = {name: tensor for name, tensor in after.items() if not name.startswith(prefix)}
        state |= {name: tensor for name, tensor in before.items() if name.startswith(prefix)}
        with replacing(path) as temporary:
            save_file(state, temporary)

    def holding(self) -> tuple[str | None, int]:
        """Which model is here, wholly or in part, and how many bytes of it."""
        for path in self.folder.glob("model-*"):
            return path.name.removeprefix("model-"), path.stat().st_size
        return None, 0

    def expect(self, model: Blob) -> bool:
        """Make room for a model and drop any other; returns whether it is here already.

        Raises:
            Unavailable: if the disk is full or broken, or the model was damaged there; connect again to get it anew.
        """
        path = self._model(model.digest)
        self._drop_models(but=path)
        with self._on_disk():
            path.touch()
            if path.stat().st_size > model.size:
                os.truncate(path, 0)
            return self._whole(model)

    def write(self, model: Blob, chunk: Chunk) -> bool:
        """Append a piece of a model; returns whether it is whole now. Pieces that are not the next are ignored.

        Raises:
            Unavailable: as `expect`.
        """
        path = self._model(model.digest)
        received = path.stat().st_size
        if chunk.digest != model.digest or chunk.offset != received or received + len(chunk.data) > model.size:
            return False
        with self._on_disk():
            self._append(path, chunk.data)
            return self._whole(model)

    def put(self, model: Blob, vector: Vector) -> None:
        """Have a model that was made here, durable on return, in place of any other.

        Raises:
            Unavailable: if the disk is full or broken.
        """
        with replacing(self._model(model.digest)) as temporary:
            vector.numpy().astype("<f4", copy=False).tofile(temporary)
        self._drop_models(but=self._model(model.digest))

    def forget_models(self) -> None:
        """Hold no model any more.

        Raises:
            Unavailable: if the disk is broken.
        """
        self._drop_models()

    def model(self, digest: str) -> Vector:
        """A model that is here, float32 `[D]`."""
        return torch.from_numpy(np.fromfile(self._model(digest), dtype="<f4").astype(np.float32, copy=False))

    def _drop_models(self, but: Path | None = None) -> None:
        with self._on_disk():
            for path in self.folder.glob("model-*"):
                if path != but:
                    path.unlink()

    def _states(self, before: int) -> dict[int, Path]:
        """Where the states after trained rounds before this one are."""
        kept = {int(path.name.partition("-")[2]): path for path in self.folder.glob("state-*")}
        return {round: path for round, path in kept.items() if round < before and self._trained(round)}

    def _trained(self, round: int) -> bool:
        return self._database.execute("SELECT 1 FROM journal WHERE round = ?", (round,)).fetchone() is not None

    def _whole(self, model: Blob) -> bool:
        path = self._model(model.digest)
        if path.stat().st_size != model.size:
            return False
        hasher = hashlib.sha256()
        for piece in read_span(path, 0, model.size):
            hasher.update(piece)
        if hasher.hexdigest() != model.digest:
            os.truncate(path, 0)  # damaged on the disk or on the way: the server sends it again after a new start
            raise Unavailable("the received model does not have the announced digest")
        return True

    def _append(self, path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise Unavailable(f"cannot write to the node's journal in {self.folder}: {error}") from error

    def _model(self, digest: str) -> Path:
        return self.folder / f"model-{digest}"

    def _state(self, round: int) -> Path:
        return self.folder / f"state-{round:06d}"
