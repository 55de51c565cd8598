"""How fast a node uploads 100 MB, against a bare WebSocket that sends the same bytes over TLS.

The whole path is a server process that spools, checks, syncs and acknowledges an update, and a node's own sending
code; timed from offer to acknowledgement. The connection alone leaves out the protocol and the spool. Every server
is a process of its own, every client this one; they take turns, so that what else the machine does hits all alike.
"""

import asyncio
import contextlib
import hashlib
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import numpy as np

from benchmarks import bare
from benchmarks.figures import Figure
from benchmarks.nodes import Fleet, blob_of, joined
from benchmarks.trials import APPS, trial
from koinon.protocol.messages import CHUNK_BYTES, Accepted, Blob, Chunk, Offer, Task, Welcome
from koinon.run.app import load_app
from koinon.wire.certificates import certificate_digest, client_context, make_authority, server_context
from koinon.wire.channel import Applicant
from koinon.wire.connect import connect
from koinon.wire.connection import Connection
from koinon.wire.identity import Identity
from koinon.wire.listen import application, listening

DEFINITION = "0" * 64
SHARE = 0.5

Upload = Callable[[], Awaitable[float]]


def measure(folder: Path, quick: bool) -> list[Figure]:
    app, repetitions = ("tiny.py", 2) if quick else ("large.py", 7)
    federation = load_app(str(APPS / app)).federation
    update = folder / "update"
    values = np.random.default_rng(0).standard_normal(federation.learner.layout.length, dtype=np.float32)
    update.write_bytes((1e-3 * values).tobytes())
    arguments = ["--min-nodes", "1", "--rounds", str(repetitions + 2)]
    with trial(app, {"node": ""}, folder / "run", arguments) as (_, address):
        fleet = Fleet(["node"], folder / "run", address, federation.digest, update)
        speeds = asyncio.run(_speeds(folder, fleet, repetitions))
    whole, alone = speeds["whole"], speeds["connection"]
    written, discarded = speeds["written"], speeds["discarded"]
    size = f"{update.stat().st_size / 1e6:,.0f} MB"
    return [
        Figure(f"{size}, the whole path", whole, "MB/s", written, f">= {SHARE}x", whole >= SHARE * written),
        Figure(f"{size}, the connection alone", alone, "MB/s", written),
        Figure(f"{size}, bare and discarded", discarded, "MB/s", written),
    ]


async def _speeds(folder: Path, fleet: Fleet, repetitions: int) -> dict[str, float]:
    """Median MB/s of each rival, in turns."""
    data = fleet.update.read_bytes()
    made = make_authority(folder / "bare")
    certificates = bare.Certificates(made.authority, made.certificate, made.key)
    seconds: dict[str, list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        rivals: dict[str, Upload] = {"whole": await _whole(fleet)}
        pipe = stack.enter_context(bare.process(_serve, certificates))
        rivals["connection"] = await _connection(certificates, data, pipe.recv(), pipe.recv())
        for name, server in (("written", bare.writing), ("discarded", bare.discarding)):
            port = stack.enter_context(bare.process(server, certificates)).recv()
            websocket = await stack.enter_async_context(bare.client(certificates, port))
            rivals[name] = lambda websocket=websocket: bare.upload(websocket, data)
        for _ in range(repetitions + 1):
            for name, upload in rivals.items():
                seconds.setdefault(name, []).append(await upload())
    return {name: len(data) / 1e6 / statistics.median(each[1:]) for name, each in seconds.items()}  # the first warms up


async def _whole(fleet: Fleet) -> Upload:
    node = await joined(fleet, "node", blob_of(fleet.update))
    asked = await node.task()

    async def upload() -> float:
        nonlocal asked
        assert isinstance(asked, Task)
        seconds = await node.deliver(asked.round)
        asked = await node.task()  # the round is closed and the machine at rest before another's turn
        return seconds

    return upload


async def _connection(certificates: bare.Certificates, data: bytes, port: int, key: bytes) -> Upload:
    context = client_context(certificates.authority)
    connection, _ = await connect(
        f"wss://127.0.0.1:{port}", Identity.generate(), pinned=key, context=context, definition=DEFINITION
    )
    digest = hashlib.sha256(data).hexdigest()

    async def upload() -> float:
        began = time.perf_counter()
        await connection.send(Offer(1, Blob(digest, len(data)), 1.0, 1, {}, 0.0))
        for start in range(0, len(data), CHUNK_BYTES):
            await connection.send(Chunk(digest, start, data[start : start + CHUNK_BYTES]))
        assert await connection.receive() == Accepted(1)
        return time.perf_counter() - began

    return upload


def _serve(pipe: Pipe, certificates: bare.Certificates) -> None:
    """Koinon's connection, whose chunks are written to a file and acknowledged when it is durable."""
    identity = Identity.generate()

    async def handler(connection: Connection, applicant: Applicant) -> None:
        await connection.send(Welcome("node", "benchmark", 1, 0))
        while True:
            offer = await connection.receive()
            assert isinstance(offer, Offer)
            with tempfile.TemporaryFile(dir=certificates.key.parent) as file:
                while file.tell() < offer.update.size:
                    chunk = await connection.receive()
                    assert isinstance(chunk, Chunk)
                    file.write(chunk.data)
                bare.synced(file)
                await connection.send(Accepted(offer.round))

    async def serve() -> None:
        app = application(
            handler,
            identity=identity,
            run="benchmark",
            certificate=certificate_digest(certificates.certificate),
            metrics=str,
            health=dict,
        )
        context = server_context(certificates.certificate, certificates.key)
        async with listening(app, "127.0.0.1", 0, context) as port:
            pipe.send(port)
            pipe.send(identity.key)
            await asyncio.Event().wait()

    asyncio.run(serve())
