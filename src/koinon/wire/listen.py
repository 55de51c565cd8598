"""The server's port: federation over WebSockets, `/metrics` and `/healthz`, on one TLS listener in a running loop."""

import asyncio
import asyncio.sslproto
import contextlib
import errno
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from koinon.core.errors import ProtocolViolation, Unavailable
from koinon.protocol.messages import MAX_MESSAGE_BYTES
from koinon.wire import channel
from koinon.wire.channel import Applicant
from koinon.wire.connection import GOING_AWAY, HANDSHAKE_S, NORMAL, PATH, VIOLATION, Connection, Pipe, ended
from koinon.wire.identity import Identity

_TLS_BUFFER_BYTES = 17 << 10
_FAREWELL_S = 1.0
_STOP_S = 5

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Connection, Applicant], Awaitable[None]]
"""Serves one node: answers Welcome or Goodbye, then speaks with it. The connection is closed when it returns."""


def application(
    handler: Handler,
    *,
    identity: Identity,
    run: str,
    certificate: str,
    metrics: Callable[[], str],
    health: Callable[[], Mapping[str, object]],
) -> ASGIApp:
    """What the port answers.

    Args:
        handler: Called for every node that has proved who it is.
        identity: The server's identity.
        run: Id of the run.
        certificate: SHA-256 of the TLS certificate that the listener shows, in hex.
        metrics: Text for Prometheus.
        health: What `/healthz` tells, as JSON.
    """

    async def federation(websocket: WebSocket) -> None:
        await websocket.accept()
        pipe = Pipe(_Socket(websocket), node=False)
        code, reason = NORMAL, ""
        try:
            connection, applicant = await _handshake(pipe, identity, run, certificate)
            await handler(connection, applicant)
        except ProtocolViolation as error:
            code, reason = VIOLATION, str(error)
        except Unavailable as error:
            code, reason = GOING_AWAY, str(error)
        if reason:
            level = logging.WARNING if code == VIOLATION else logging.DEBUG
            _log.log(level, "%s: %s", websocket.client.host if websocket.client else "a node", reason)
        await pipe.close(code, reason)

    async def show_metrics(_: Request) -> Response:
        return PlainTextResponse(metrics(), media_type="text/plain; version=0.0.4")

    async def show_health(_: Request) -> Response:
        return JSONResponse(health())

    pages = Starlette(routes=[Route("/metrics", show_metrics), Route("/healthz", show_health)])
    pages.router.redirect_slashes = False

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # Nodes go past Starlette's routing and middleware, which would keep 10 KiB for each and slow every message.
        if scope["type"] == "websocket" and scope["path"] == PATH:
            await federation(WebSocket(scope, receive, send))
        else:
            await pages(scope, receive, send)

    return answer


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve `app` over TLS while the body runs; gives the bound port. Closes every connection at the end.

    Signals stay with the caller.

    Args:
        app: What to serve.
        host: Address to bind.
        port: Port to bind; 0 for any free one.
        context: From `server_context`.

    Raises:
        Unavailable: if the port cannot be had.
    """
    # asyncio gives every TLS connection a zeroed read buffer of this size. With 17 KiB, one TLS record, instead of
    # 256 KiB an idle connection costs 76 KiB instead of 300, and uploads are as fast (1,000 connections, Python 3.11).
    asyncio.sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES
    server = _Server(app)
    bound = await server.bind(host, port, context)
    running = asyncio.create_task(server.serve())
    try:
        yield bound
    finally:
        server.should_exit = True
        await running
        server.abort()


async def _handshake(pipe: Pipe, identity: Identity, run: str, certificate: str) -> tuple[Connection, Applicant]:
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            greeting = await pipe.receive()
            challenged = channel.challenge(identity, greeting, run=run, certificate=certificate)
            await pipe.send(challenged)
            established, applicant = channel.admit(identity, greeting, challenged, await pipe.receive())
    except TimeoutError:
        raise ProtocolViolation(f"the peer did not prove who it is within {HANDSHAKE_S:g} s") from None
    return Connection(pipe, established), applicant


class _Socket:
    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def send(self, data: bytes | bytearray) -> None:
        try:
            await self._websocket.send({"type": "websocket.send", "bytes": data})
        except (WebSocketDisconnect, RuntimeError):  # a RuntimeError when either side has begun to close
            raise ended(None, None) from None

    async def receive(self) -> bytes:
        try:
            message = await self._websocket.receive()
        except RuntimeError:
            raise ended(None, None) from None
        if message["type"] == "websocket.disconnect":
            raise ended(message.get("code"), message.get("reason"))
        data = message.get("bytes")
        if not isinstance(data, bytes):
            raise ProtocolViolation("the peer sent text, but messages are binary")
        return data

    async def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):  # a peer that reads nothing is cut without a word
                await self._websocket.close(code, reason)


class _Http(H11Protocol):
    """HTTP before the upgrade; whoever is still there after the handshake's time is cut, silent ones included."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HANDSHAKE_S, self._cut)

    def _cut(self) -> None:
        if not self.transport.is_closing() and self.transport.get_protocol() is self:
            self.transport.abort()


class _WebSocket(WebSocketsSansIOProtocol):
    """Waits for a slow reader after every message, and cuts a peer that will not say goodbye, or sends pings without
    reading the pongs: neither may pile up here."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.close_timeout = _FAREWELL_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(_TLS_BUFFER_BYTES)  # asyncio's own is 512 KiB, and OpenSSL keeps them

    def handle_ping(self) -> None:
        super().handle_ping()
        if not self.writable.is_set():
            self.transport.abort()


class _Server(uvicorn.Server):
    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            http=_Http,
            ws=_WebSocket,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            ws_ping_interval=None,
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_STOP_S,
        )
        config.load()
        super().__init__(config)

    async def bind(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listen with limits on TLS's own handshake and farewell, which uvicorn has no setting for."""
        try:
            listener = await asyncio.get_running_loop().create_server(
                self._protocol,
                host,
                port,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=HANDSHAKE_S,
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Unavailable(f"port {host}:{port} is in use; choose another with --listen") from None
            raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}; choose with --listen") from None
        self.servers = [listener]
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def startup(self, sockets: Any = None) -> None:
        self.started = True

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

    def abort(self) -> None:
        """Cut what did not close in time."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _protocol(self) -> asyncio.Protocol:
        return _Http(self.config, self.server_state, {})
