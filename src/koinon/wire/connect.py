"""A node's way to its server: TLS, WebSocket, handshake, and the server's first word."""

import asyncio
import contextlib
import ipaddress
import ssl
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from koinon.core.errors import AdmissionError, KoinonError, ProtocolViolation, Unavailable
from koinon.protocol.messages import CHUNK_BYTES, MAX_MESSAGE_BYTES, Goodbye, Welcome
from koinon.wire import channel
from koinon.wire.certificates import fingerprint
from koinon.wire.codec import one_line
from koinon.wire.connection import GOING_AWAY, HANDSHAKE_S, PATH, VIOLATION, Connection, Pipe, ended
from koinon.wire.identity import Identity


async def connect(
    url: str,
    identity: Identity,
    *,
    pinned: bytes,
    context: ssl.SSLContext,
    definition: str,
    name: str | None = None,
    token: str = "",
) -> tuple[Connection, Welcome | Goodbye]:
    """Connect to a server, prove each to the other who they are, and hear whether this node may join.

    Args:
        url: `wss://HOST:PORT`.
        identity: The node's identity.
        pinned: The public key that the server must have.
        context: From `client_context`.
        definition: Digest of the definition on the node's disk.
        name: The name to ask for when enrolling by a token.
        token: One-time enrolment token, or empty; revealed only after the server proved itself.

    Raises:
        AdmissionError: if the URL is not of that form.
        Unavailable: if the server cannot be reached, or the connection is cut.
        ProtocolViolation: if the server is not who it must be, or refuses this node's proof.
    """
    host, port = _address(url)
    websocket = await _dial(host, port, context)
    pipe = Pipe(_Socket(websocket), node=True)
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            greeting = channel.hello(identity)
            await pipe.send(greeting)
            established, proof = channel.prove(
                identity,
                greeting,
                await pipe.receive(),
                pinned=pinned,
                certificate=_seen(websocket),
                definition=definition,
                name=name,
                token=token,
            )
            await pipe.send(proof)
            connection = Connection(pipe, established)
            answer = await connection.receive()
            if not isinstance(answer, Welcome | Goodbye):
                raise ProtocolViolation(f"the server sent {type(answer).__name__} where Welcome or Goodbye is due")
            return connection, answer
    except BaseException as error:
        if isinstance(error, ProtocolViolation):
            await pipe.close(VIOLATION, str(error))
        else:
            await pipe.close(GOING_AWAY, "")
        if isinstance(error, TimeoutError):
            raise Unavailable(f"{host}:{port} did not answer within {HANDSHAKE_S:g} s; is it overloaded?") from None
        raise


async def _dial(host: str, port: int, context: ssl.SSLContext) -> ClientConnection:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return await dial(
            f"wss://{address}{PATH}",
            ssl=context,
            proxy=None if _loopback(host) else True,
            compression=None,
            ping_interval=None,
            open_timeout=HANDSHAKE_S,
            close_timeout=HANDSHAKE_S / 2,
            max_size=MAX_MESSAGE_BYTES,
            max_queue=1,
            write_limit=CHUNK_BYTES,
        )
    except ssl.SSLCertVerificationError as error:
        raise ProtocolViolation(
            f"the TLS certificate of {address} is refused: {error.verify_message.rstrip('.')}; "
            "if the server has a private authority, pass --ca FILE"
        ) from None
    except InvalidStatus as error:
        raise Unavailable(f"{address} is no Koinon server: it answered HTTP {error.response.status_code}") from None
    except TimeoutError:
        raise Unavailable(f"{address} did not answer within {HANDSHAKE_S:g} s; check the address") from None
    except (OSError, WebSocketException, ImportError) as error:  # ImportError: a SOCKS proxy without its package
        reason = one_line(str(error)) or "the connection was cut"
        raise Unavailable(f"{address} cannot be reached: {reason}") from None


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        host = None
    if not host or parts.scheme != "wss" or parts.path.strip("/") or parts.query or parts.username:
        raise AdmissionError(f"{url!r} is no server's address; write wss://HOST:PORT")
    return host, port


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _seen(websocket: ClientConnection) -> str:
    der = websocket.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return fingerprint(der)


class _Socket:
    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    async def send(self, data: bytes | bytearray) -> None:
        try:
            await self._websocket.send(data)
        except ConnectionClosed as error:
            raise _closed(error) from None

    async def receive(self) -> bytes:
        try:
            data = await self._websocket.recv()
        except ConnectionClosed as error:
            raise _closed(error) from None
        if isinstance(data, str):
            raise ProtocolViolation("the peer sent text, but messages are binary")
        return data

    async def close(self, code: int, reason: str) -> None:
        await self._websocket.close(code, reason)


def _closed(error: ConnectionClosed) -> KoinonError:
    frame = error.rcvd or error.sent
    return ended(frame.code, frame.reason) if frame else ended(None, None)
