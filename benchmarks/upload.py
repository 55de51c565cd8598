"""How fast a node uploads: Koinon's signed, checked, durable connection against a bare WebSocket, both over TLS.

    python benchmarks/upload.py [--megabytes 100] [--repetitions 5]

Every server is a process of its own, on loopback; every client is this process. Taken in turns, so that what else
the machine does hits all alike. Durations are from the first byte to the server's word that it has everything.
Prints MB/s (medians) and each one's ratio to Koinon's.
"""

import argparse
import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import IO

import websockets.asyncio.client
import websockets.asyncio.server

from koinon.protocol.messages import CHUNK_BYTES, Accepted, Blob, Chunk, Offer, Welcome
from koinon.wire.certificates import Authority, certificate_digest, client_context, make_authority, server_context
from koinon.wire.channel import Applicant
from koinon.wire.connect import connect
from koinon.wire.connection import Connection
from koinon.wire.identity import Identity
from koinon.wire.listen import application, listening

DEFINITION = "0" * 64
SERVER = Identity.generate()


async def koinon_server(authority: Authority, port: Pipe) -> None:
    """Writes every chunk to a file and answers when the file is durable."""

    async def handler(connection: Connection, applicant: Applicant) -> None:
        await connection.send(Welcome("node", "benchmark", 1, 0))
        while True:
            offer = await connection.receive()
            assert isinstance(offer, Offer)
            with tempfile.TemporaryFile() as file:
                while file.tell() < offer.update.size:
                    chunk = await connection.receive()
                    assert isinstance(chunk, Chunk)
                    file.write(chunk.data)
                sync(file)
                await connection.send(Accepted(offer.round))

    app = application(
        handler,
        identity=SERVER,
        run="benchmark",
        certificate=certificate_digest(authority.certificate),
        metrics=str,
        health=dict,
    )
    context = server_context(authority.certificate, authority.key)
    async with listening(app, "127.0.0.1", 0, context) as bound:
        port.send(bound)
        await asyncio.Event().wait()


async def writing_server(authority: Authority, port: Pipe) -> None:
    """Bare, writing every message to a file; a short message asks for an answer once the file is durable."""

    async def handler(websocket: websockets.asyncio.server.ServerConnection) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                with tempfile.TemporaryFile() as file:
                    while len(data := await websocket.recv()) > 1:
                        file.write(data)
                    sync(file)
                    await websocket.send(b".")

    await bare_server(authority, port, handler)


async def discarding_server(authority: Authority, port: Pipe) -> None:
    """Bare, throwing every message away; a short message asks for an answer."""

    async def handler(websocket: websockets.asyncio.server.ServerConnection) -> None:
        async for data in websocket:
            if len(data) == 1:
                await websocket.send(b".")

    await bare_server(authority, port, handler)


async def bare_server(
    authority: Authority,
    port: Pipe,
    handler: Callable[[websockets.asyncio.server.ServerConnection], Awaitable[None]],
) -> None:
    context = server_context(authority.certificate, authority.key)
    options = {"compression": None, "ping_interval": None, "max_size": 2 * CHUNK_BYTES}
    async with websockets.asyncio.server.serve(handler, "127.0.0.1", 0, ssl=context, **options) as server:
        port.send(next(iter(server.sockets)).getsockname()[1])
        await asyncio.Event().wait()


def sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.asynccontextmanager
async def koinon_client(
    port: int, context: ssl.SSLContext, data: bytes
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    digest = hashlib.sha256(data).hexdigest()
    connection, _ = await connect(
        f"wss://127.0.0.1:{port}", Identity.generate(), pinned=SERVER.key, context=context, definition=DEFINITION
    )

    async def upload() -> None:
        await connection.send(Offer(1, Blob(digest, len(data)), 1.0, 1, {}, 0.0))
        for start in range(0, len(data), CHUNK_BYTES):
            await connection.send(Chunk(digest, start, data[start : start + CHUNK_BYTES]))
        assert await connection.receive() == Accepted(1)

    yield upload
    await connection.close()


@contextlib.asynccontextmanager
async def bare_client(port: int, context: ssl.SSLContext, data: bytes) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    async with websockets.asyncio.client.connect(
        f"wss://127.0.0.1:{port}",
        ssl=context,
        proxy=None,
        compression=None,
        ping_interval=None,
        write_limit=CHUNK_BYTES,
    ) as websocket:

        async def upload() -> None:
            for start in range(0, len(data), CHUNK_BYTES):
                await websocket.send(data[start : start + CHUNK_BYTES])
            await websocket.send(b".")
            await websocket.recv()

        yield upload


def run(server: Callable[[Authority, Pipe], Awaitable[None]], authority: Authority, port: Pipe) -> None:
    asyncio.run(server(authority, port))


RIVALS = {
    "koinon, written and synced": (koinon_server, koinon_client),
    "bare, written and synced": (writing_server, bare_client),
    "bare, discarded": (discarding_server, bare_client),
}


async def measure(authority: Authority, ports: dict[str, int], megabytes: int, repetitions: int) -> dict[str, float]:
    """Median MB/s of each rival."""
    data = os.urandom(megabytes * 1_000_000)
    context = client_context(authority.authority)
    speeds: dict[str, list[float]] = {name: [] for name in RIVALS}
    async with contextlib.AsyncExitStack() as stack:
        uploads = {
            name: await stack.enter_async_context(client(ports[name], context, data))
            for name, (_, client) in RIVALS.items()
        }
        for repetition in range(repetitions + 1):
            for name, upload in uploads.items():
                begun = time.perf_counter()
                await upload()
                if repetition:  # the first warms up
                    speeds[name].append(megabytes / (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    fork = multiprocessing.get_context("fork")  # so that the servers share SERVER
    with tempfile.TemporaryDirectory() as folder:
        authority = make_authority(Path(folder))
        ports, servers = {}, []
        try:
            for name, (server, _) in RIVALS.items():
                here, there = fork.Pipe()
                servers.append(fork.Process(target=run, args=(server, authority, there), daemon=True))
                servers[-1].start()
                ports[name] = here.recv()
            medians = asyncio.run(measure(authority, ports, arguments.megabytes, arguments.repetitions))
        finally:
            for process in servers:
                process.terminate()
    ours = next(iter(medians.values()))
    print(f"{'upload of ' + str(arguments.megabytes) + ' MB over TLS':<32}{'MB/s':>8}{'koinon is':>12}")
    for name, median in medians.items():
        print(f"{name:<32}{median:>8.0f}{ours / median:>11.2f}x")


if __name__ == "__main__":
    main()
