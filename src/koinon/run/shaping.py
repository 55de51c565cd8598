"""A slow network on this machine: between each node and the server, a relay that lets bytes through as a profile says.

It works on the bytes of TCP connections, needs no privileges, and leaves TLS as it is, from end to end.
"""

import asyncio
import contextlib
import math
import socket
import threading
from collections.abc import Iterable
from types import TracebackType

import numpy as np

from koinon.core.network import PACKET_BYTES, Lane, Network
from koinon.core.rng import generator, words
from koinon.core.types import ClientId

_PIECE_BYTES = 16 << 10
"""What is delayed at a time."""

_BUFFER_BYTES = 64 << 10
"""What the kernel may hold of a connection before the sender has to wait, as it would for the network."""

_CREDIT_S = 0.005
"""Time unused that may be made up for: timers are late by up to a millisecond."""


class Relay:
    """Relays to a server, one for each node, on ports of their own; leaving the context ends them.

    Args:
        network: How each node is connected.
        port: The server's, on this machine.
        nodes: Whom there is a relay for.
        seed: Of jitter, loss and cuts.
    """

    def __init__(self, network: Network, port: int, nodes: Iterable[ClientId], seed: int = 0) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._links = {node: _Link(network, port, _draws(seed, node)) for node in nodes}

    def __enter__(self) -> "Relay":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def port(self, node: ClientId) -> int:
        """Where a node reaches the server."""
        return self._links[node].port

    async def _open(self) -> None:
        for link in self._links.values():
            await link.open()

    async def _close(self) -> None:
        for link in self._links.values():
            await link.close()


class _Link:
    """One node's way to the server and back, for one connection after the other."""

    def __init__(self, network: Network, port: int, draws: np.random.Generator) -> None:
        self._network = network
        self._server = port
        self._draws = draws
        self._up, self._down = _Traffic(network.up, draws), _Traffic(network.down, draws)
        self._connections: set[asyncio.Task[None]] = set()
        self._whole = True

    async def open(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self.port = int(listener.getsockname()[1])
        self._listener = await asyncio.start_server(self._serve, sock=listener, limit=_BUFFER_BYTES)
        self._breaking = asyncio.create_task(self._break())

    async def close(self) -> None:
        self._listener.close()
        self._breaking.cancel()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(self._breaking, *self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if self._whole:
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # an end is gone, or the link is cut: both ends see a broken connection
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = socket.socket()
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        upstream.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(upstream, ("127.0.0.1", self._server))
            from_server, to_server = await asyncio.open_connection(sock=upstream, limit=_BUFFER_BYTES)
        except BaseException:
            upstream.close()
            raise
        ways = [
            asyncio.create_task(self._up.carry(reader, to_server)),
            asyncio.create_task(self._down.carry(from_server, writer)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.transport.abort()

    async def _break(self) -> None:
        """Cut what is connected, at random times."""
        while self._network.cuts_per_hour:
            await asyncio.sleep(self._draws.exponential(3600 / self._network.cuts_per_hour))
            self._whole = False
            for task in self._connections:
                task.cancel()
            await asyncio.sleep(self._network.cut_s)
            self._whole = True


class _Traffic:
    """One direction of a link: when what enters it comes out."""

    def __init__(self, lane: Lane, draws: np.random.Generator) -> None:
        self._lane = lane
        self._draws = draws
        self._free = -math.inf

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the sender ends its half of the connection, and the receiver has all of it."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        arriving = asyncio.create_task(_deliver(under_way, writer))
        try:
            while True:
                piece = await reader.read(_PIECE_BYTES)
                under_way.put_nowait((self._arrival(len(piece)), piece))
                if not piece:
                    break
                await _until(self._free)
            await arriving
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    def _arrival(self, size: int) -> float:
        """When so many bytes, sent now, are all there."""
        lane, now = self._lane, asyncio.get_running_loop().time()
        self._free = max(self._free, now - _CREDIT_S) + size / lane.bytes_per_s
        lost = self._draws.random() > (1 - lane.loss) ** math.ceil(size / PACKET_BYTES)
        again = 2 * lane.delay_s if lost else 0.0
        return max(self._free, now) + lane.delay_s + self._draws.uniform(0, lane.jitter_s) + again


async def _deliver(under_way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
    """In order: what is due earlier than what was sent before it comes right after that."""
    while True:
        due, piece = await under_way.get()
        await _until(due)
        if not piece:
            with contextlib.suppress(OSError):
                writer.write_eof()
            return
        writer.write(piece)
        await writer.drain()


def _draws(seed: int, node: ClientId) -> np.random.Generator:
    return np.random.Generator(words(generator(seed, "network", client=node)))


async def _until(due: float) -> None:
    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
