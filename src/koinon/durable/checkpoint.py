"""The server's state between rounds, as one safetensors file that is either there whole or not at all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from koinon.core.errors import Unavailable, VerificationFailed
from koinon.core.layout import Layout
from koinon.core.types import Vector
from koinon.durable.failpoint import reach

READ_BYTES = 1 << 18
"""Bytes that are read, and sent, at a time: a sender holds several such pieces for every receiver. With 1 MiB, the most
that a message can hold, 50 receivers cost 230 MiB, and nothing is faster."""


@dataclass(frozen=True)
class ServerState:
    """What the server carries from round to round.

    Attributes:
        model: The global model, float32 `[D]`.
        optimizer: The server optimizer's tensors by name.
        stages: The stages' tensors by name.
        clients: In simulation, the tensors of the clients' stages and codecs, by `client/name`.
        reducer: What the rule for many updates remembers, by name.
        downlink: What the codec of the way down remembers, by name.
    """

    model: Vector
    optimizer: Mapping[str, torch.Tensor]
    stages: Mapping[str, torch.Tensor]
    clients: Mapping[str, torch.Tensor] = field(default_factory=dict)
    reducer: Mapping[str, torch.Tensor] = field(default_factory=dict)
    downlink: Mapping[str, torch.Tensor] = field(default_factory=dict)


_ROOMS = ("optimizer", "stages", "clients", "reducer", "downlink")


def save(path: Path, state: ServerState) -> None:
    """Write a checkpoint: to a temporary file, to the disk, then under its name."""
    tensors = {"model": state.model}
    for room in _ROOMS:
        tensors |= {f"{room}/{name}": tensor for name, tensor in getattr(state, room).items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def load(path: Path) -> ServerState:
    """Read a checkpoint.

    Raises:
        VerificationFailed: if the file is missing or damaged.
    """
    rooms: dict[str, dict[str, torch.Tensor]] = {room: {} for room in _ROOMS}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                room, _, name = key.partition("/")
                if name:
                    rooms[room][name] = file.get_tensor(key).clone()
        return ServerState(_model(path), **rooms)
    except (OSError, SafetensorError, KeyError) as error:
        raise VerificationFailed(f"checkpoint {path} is missing or damaged: {error}") from error


def load_model(path: Path) -> Vector:
    """The model of a checkpoint, and nothing else of it.

    Raises:
        VerificationFailed: if the file is missing or damaged.
    """
    try:
        return _model(path)
    except (OSError, ValueError, KeyError) as error:
        raise VerificationFailed(f"checkpoint {path} is missing or damaged: {error}") from error


def _model(path: Path) -> Vector:
    """The model, read rather than mapped: the pages of a map would count as a second model in memory."""
    begin, end = model_span(path)
    values = np.fromfile(path, dtype="<f4", count=(end - begin) // 4, offset=begin)
    if 4 * len(values) != end - begin:
        raise VerificationFailed(f"{path} ends early")
    return torch.from_numpy(values.astype(np.float32, copy=False))


def export(path: Path, layout: Layout, model: Vector) -> None:
    """Write a model as named tensors, for `load_state_dict(safetensors.torch.load_file(path), strict=False)`."""
    with replacing(path) as temporary:
        save_file(layout.state_dict(model), temporary)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends well its file is on disk under the name `path`.

    Raises:
        Unavailable: if the disk is full or broken; then `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that who was killed here overwrites his own remains
    try:
        yield temporary
        reach("mid checkpoint")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise Unavailable(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def model_span(path: Path) -> tuple[int, int]:
    """Where in a checkpoint file the model's raw bytes begin and end."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start, stop = json.loads(file.read(length))["model"]["data_offsets"]
    return 8 + length + start, 8 + length + stop


def read_span(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Bytes `start .. stop` of a file, in pieces; the file is read as the pieces are asked for."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < stop:
            piece = file.read(min(READ_BYTES, stop - start))
            if not piece:
                raise VerificationFailed(f"{path} ends early")
            start += len(piece)
            yield piece


def digest(model: Vector) -> str:
    """SHA-256 of a model's little-endian float32 bytes, in hex."""
    return hashlib.sha256(model.numpy().astype("<f4", copy=False).data).hexdigest()
