"""The baseline of the network: the same bytes over `websockets` and TLS, with nothing around them.

Imports nothing of Koinon, so that its processes start at once and hold no torch.
"""

import asyncio
import contextlib
import multiprocessing
import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import IO, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

MESSAGE_BYTES = 1 << 20
_OPTIONS: dict[str, Any] = {"compression": None, "ping_interval": None, "max_size": 2 * MESSAGE_BYTES}


@dataclass(frozen=True)
class Certificates:
    """Files of a private authority and of the certificate that it gave the server."""

    authority: Path
    certificate: Path
    key: Path


@contextlib.contextmanager
def process(target: Callable[..., None], *arguments: object) -> Iterator[Pipe]:
    """A process that runs `target(pipe, *arguments)` for as long as the context lasts; gives our end of its pipe."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    started = spawn.Process(target=target, args=(theirs, *arguments), daemon=True)
    started.start()
    try:
        yield ours
    finally:
        started.terminate()
        started.join()


def writing(pipe: Pipe, certificates: Certificates) -> None:
    """A server that writes every message to a file; a short message asks for an answer once the file is durable."""

    async def handler(websocket: ServerConnection) -> None:
        while True:
            with tempfile.TemporaryFile(dir=certificates.key.parent) as file:
                while len(data := await websocket.recv()) > 1:
                    file.write(data)
                synced(file)
                await websocket.send(b".")

    asyncio.run(_serve(pipe, certificates, handler))


def discarding(pipe: Pipe, certificates: Certificates) -> None:
    """A server that throws every message away; a short message asks for an answer."""

    async def handler(websocket: ServerConnection) -> None:
        async for data in websocket:
            if len(data) == 1:
                await websocket.send(b".")

    asyncio.run(_serve(pipe, certificates, handler))


def rounds(pipe: Pipe, certificates: Certificates, nodes: int, count: int, down: int) -> None:
    """A server that sends every node `down` bytes and waits for everyone's answer, again and again; tells seconds."""
    barrier, begun = asyncio.Barrier(nodes), [0.0] * count
    seconds: list[float] = []

    async def handler(websocket: ServerConnection) -> None:
        for number in range(count):
            await barrier.wait()
            begun[number] = begun[number] or time.perf_counter()
            await websocket.send(bytes(down))
            await websocket.recv()
            await barrier.wait()
            if len(seconds) == number:
                seconds.append(time.perf_counter() - begun[number])
        if len(seconds) == count:
            seconds.append(0.0)
            pipe.send(seconds[:count])

    asyncio.run(_serve(pipe, certificates, handler))


def answering(pipe: Pipe, certificates: Certificates, port: int, up: int) -> None:
    """A node that answers every message with `up` bytes."""

    async def answer() -> None:
        async with client(certificates, port) as websocket:
            async for _ in websocket:
                await websocket.send(bytes(up))

    asyncio.run(answer())


@contextlib.asynccontextmanager
async def client(certificates: Certificates, port: int) -> AsyncIterator[ClientConnection]:
    """A connection to such a server."""
    context = ssl.create_default_context(cafile=certificates.authority)
    async with connect(
        f"wss://127.0.0.1:{port}", ssl=context, proxy=None, write_limit=MESSAGE_BYTES, **_OPTIONS
    ) as websocket:
        yield websocket


async def upload(websocket: ClientConnection, data: bytes) -> float:
    """Send all to a `writing` or `discarding` server; seconds until it has it."""
    began = time.perf_counter()
    for start in range(0, len(data), MESSAGE_BYTES):
        await websocket.send(data[start : start + MESSAGE_BYTES])
    await websocket.send(b".")
    await websocket.recv()
    return time.perf_counter() - began


def loop(certificates: Certificates, nodes: int, count: int, up: int, down: int) -> Sequence[float]:
    """Seconds of each round of a bare loop over `nodes` processes."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(process(rounds, certificates, nodes, count, down))
        port = server.recv()
        for _ in range(nodes):
            stack.enter_context(process(answering, certificates, port, up))
        seconds: Sequence[float] = server.recv()
        return seconds


def synced(file: IO[bytes]) -> None:
    """On the disk."""
    file.flush()
    os.fsync(file.fileno())


async def _serve(
    pipe: Pipe, certificates: Certificates, handler: Callable[[ServerConnection], Awaitable[None]]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)

    async def handled(websocket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await handler(websocket)

    async with serve(handled, "127.0.0.1", 0, ssl=context, **_OPTIONS) as server:
        pipe.send(next(iter(server.sockets)).getsockname()[1])
        await asyncio.Event().wait()
