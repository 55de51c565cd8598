"""Many nodes in one process: real identities, TLS and protocol, but no model; every update is the same file."""

import asyncio
import contextlib
import hashlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trials import Address
from koinon.core.errors import Unavailable
from koinon.protocol.messages import (
    Accepted,
    Blob,
    Chunk,
    Continue,
    Delivered,
    Finished,
    Goodbye,
    Heartbeat,
    Offer,
    Ready,
    Task,
)
from koinon.run.host import Home
from koinon.run.join import HEARTBEAT_S
from koinon.run.outbox import FileChunks
from koinon.wire.certificates import client_context
from koinon.wire.connect import connect
from koinon.wire.connection import Connection
from koinon.wire.identity import parse_key

AT_ONCE = 20
"""Nodes that are connecting at the same time."""


@dataclass(frozen=True)
class Fleet:
    """Nodes that take part in a run.

    Attributes:
        names: What they are called.
        folder: The run's folder, with their identities.
        address: The server.
        definition: Digest of what is trained.
        update: File with the bytes of everyone's update.
    """

    names: Sequence[str]
    folder: Path
    address: Address
    definition: str
    update: Path

    @contextlib.contextmanager
    def afloat(self) -> Iterator[None]:
        """Take part, in a process of its own, for as long as the context lasts."""
        process = multiprocessing.get_context("spawn").Process(target=_take_part, args=(self,), daemon=True)
        process.start()
        try:
            yield
        finally:
            process.terminate()
            process.join()


class Node:
    """One node."""

    def __init__(self, connection: Connection, update: Path, blob: Blob) -> None:
        self.connection = connection
        self._update = update
        self._blob = blob

    async def task(self) -> Task | Finished | None:
        """The next task or the end, once the model that goes with it has come; None when the server says goodbye."""
        asked: Task | Finished | None = None
        received = 0
        while asked is None or received < asked.model.size:
            message = await self.connection.receive()
            match message:
                case Task() | Finished():
                    asked, received = message, 0
                case Chunk():
                    received += len(message.data)
                case Goodbye():
                    return None
        return asked

    async def deliver(self, round: int) -> float:
        """Send the update as a node does, from offer to acknowledgement; returns seconds."""
        began = time.perf_counter()
        await self.connection.send(Offer(round, self._blob, 1.0, 1, {}, 0.0))
        while not isinstance(message := await self.connection.receive(), Accepted):
            if isinstance(message, Continue):
                chunks = FileChunks(self._blob.digest, self._update, 0, self._blob.size, message.offset, "")
                for chunk in chunks:
                    await self.connection.send(chunk)
            elif not isinstance(message, Heartbeat):
                raise RuntimeError(f"the server answered {message}")
        return time.perf_counter() - began

    async def live(self) -> None:
        """Take part to the end."""
        while (asked := await self.task()) is not None:
            if isinstance(asked, Task):
                await self.deliver(asked.round)
            else:
                await self.connection.send(Delivered(asked.model.digest, {}))


async def joined(fleet: Fleet, name: str, blob: Blob) -> Node:
    """A node that the server has let in."""
    address = fleet.address
    connection, answer = await connect(
        address.url,
        Home(fleet.folder / "nodes" / name).own_identity(),
        pinned=parse_key(address.key),
        context=client_context(address.authority),
        definition=fleet.definition,
    )
    if isinstance(answer, Goodbye):
        raise RuntimeError(answer.reason)
    await connection.send(Ready())
    return Node(connection, fleet.update, blob)


def blob_of(path: Path) -> Blob:
    """What a file's bytes are."""
    with path.open("rb") as file:
        return Blob(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _take_part(fleet: Fleet) -> None:
    asyncio.run(_all(fleet))


async def _all(fleet: Fleet) -> None:
    blob, gate = blob_of(fleet.update), asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with gate:
            node = await joined(fleet, name, blob)
        beating = asyncio.create_task(_beat(node.connection))
        try:
            await node.live()
        finally:
            beating.cancel()

    results = await asyncio.gather(*(one(name) for name in fleet.names), return_exceptions=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, Unavailable):  # cut at the end: the run is over
            raise result


async def _beat(connection: Connection) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        await connection.send(Heartbeat())
