import asyncio
import contextlib
import json
import logging
import ssl

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from koinon.core.errors import AdmissionError, ProtocolViolation, Unavailable
from koinon.protocol.messages import (
    CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    VERSION,
    Chunk,
    Goodbye,
    Heartbeat,
    Hello,
    Leave,
    Refused,
    Welcome,
)
from koinon.wire import connect as connecting
from koinon.wire import listen
from koinon.wire.certificates import certificate_digest, client_context, make_authority, server_context
from koinon.wire.channel import ENVELOPE_BYTES
from koinon.wire.codec import encode
from koinon.wire.connect import connect
from koinon.wire.identity import Identity
from koinon.wire.listen import application, listening

NODE, SERVER = Identity.generate(), Identity.generate()
DEFINITION = "d" * 64
WELCOME = Welcome("north", "run", 3, 0)
CHUNK = Chunk(DEFINITION, 0, bytes(CHUNK_BYTES))


class Host:
    """A real server; its handler welcomes everyone and sends every chunk back until the node leaves."""

    def __init__(self, authority, handler=None, answer=WELCOME, certificate=None):
        self.authority = authority
        self.handler = handler
        self.answer = answer
        self.certificate = certificate or certificate_digest(authority.certificate)
        self.applicants = []
        self.connections = []
        self.errors = []

    async def serve(self, connection, applicant):
        self.applicants.append(applicant)
        self.connections.append(connection)
        try:
            await connection.send(self.answer)
            if self.handler:
                await self.handler(connection)
            else:
                while not isinstance(message := await connection.receive(), Leave):
                    await connection.send(message)
        except Exception as error:
            self.errors.append(error)
            raise

    @contextlib.asynccontextmanager
    async def running(self):
        app = application(
            self.serve,
            identity=SERVER,
            run="run",
            certificate=self.certificate,
            metrics=lambda: "koinon_rounds 3\n",
            health=lambda: {"run": "run", "round": 2},
        )
        context = server_context(self.authority.certificate, self.authority.key)
        async with listening(app, "127.0.0.1", 0, context) as self.port:
            yield self

    async def join(self, *, pinned=SERVER.key, authority=None, host="127.0.0.1", token=""):
        return await connect(
            f"wss://{host}:{self.port}",
            NODE,
            pinned=pinned,
            context=client_context((authority or self.authority).authority),
            definition=DEFINITION,
            name="north",
            token=token,
        )

    async def echo(self, connection, data=b"data"):
        message = Chunk(DEFINITION, 1, data)
        await connection.send(message)
        assert await connection.receive() == message

    async def raw(self):
        """A TLS connection that speaks no Koinon yet."""
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=client_context(self.authority.authority), limit=1 << 14
        )

    async def upgraded(self):
        """A raw connection after the upgrade to WebSocket."""
        reader, writer = await self.raw()
        writer.write(
            b"GET /federation HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def get(self, path, method="GET"):
        """(status, body)."""
        reader, writer = await self.raw()
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b"server:" not in head.lower()
        return int(head.split()[1]), body


def test_a_node_joins_speaks_and_leaves(authority):
    async def conversation():
        async with Host(authority).running() as host:
            connection, answer = await host.join(token="secret")
            assert answer == WELCOME
            assert connection.peer == SERVER.key
            await host.echo(connection)
            await host.echo(connection, bytes(CHUNK_BYTES))
            await connection.send(Leave("done"))
            with pytest.raises(Unavailable, match="closed"):
                await connection.receive()
            await connection.close()
            with pytest.raises(Unavailable, match="closed"):
                await connection.send(Heartbeat())
            (applicant,) = host.applicants
            assert applicant == listen.Applicant(NODE.key, DEFINITION, "north", "secret")
            assert host.connections[0].peer == NODE.key
            assert not host.errors

    asyncio.run(conversation())


def test_a_goodbye_is_an_answer(authority):
    async def conversation():
        goodbye = Goodbye("the definitions differ", final=True)
        async with Host(authority, answer=goodbye).running() as host:
            connection, answer = await host.join()
            assert answer == goodbye
            await connection.close()

    asyncio.run(conversation())


def test_anything_else_is_no_answer(authority):
    async def conversation():
        async with Host(authority, answer=Refused(1, "")).running() as host:
            with pytest.raises(ProtocolViolation, match="Refused where Welcome or Goodbye"):
                await host.join()

    asyncio.run(conversation())


def test_both_ends_count_the_same_bytes_and_they_follow_from_the_messages(authority):
    async def conversation():
        async with Host(authority).running() as host:
            counts = []
            for _ in range(2):
                connection, _ = await host.join()
                before = connection.bytes_out
                for size in (0, 10, 200, 70_000, CHUNK_BYTES):
                    await host.echo(connection, bytes(size))
                await connection.send(Heartbeat())
                await connection.receive()
                other = host.connections[-1]
                assert (connection.bytes_in, connection.bytes_out) == (other.bytes_out, other.bytes_in)
                counts.append((connection.bytes_in, connection.bytes_out))
                sent = [encode(Chunk(DEFINITION, 1, bytes(size))) for size in (0, 10, 200, 70_000, CHUNK_BYTES)]
                payload = [len(data) + ENVELOPE_BYTES for data in [*sent, encode(Heartbeat())]]
                header = [2 + 4 + (0 if size < 126 else 2 if size < 65536 else 8) for size in payload]
                assert connection.bytes_out - before == sum(payload) + sum(header)
                await connection.close()
            assert counts[0] == counts[1]

    asyncio.run(conversation())


def test_another_pinned_key_is_refused_before_the_token_is_told(authority):
    async def conversation():
        async with Host(authority).running() as host:
            with pytest.raises(ProtocolViolation, match="is pinned"):
                await host.join(pinned=NODE.key, token="secret")
            assert not host.applicants

    asyncio.run(conversation())


def test_a_certificate_that_the_server_does_not_vouch_for_is_refused(authority):
    async def conversation():
        async with Host(authority, certificate="0" * 64).running() as host:
            with pytest.raises(ProtocolViolation, match="in between"):
                await host.join(token="secret")
            assert not host.applicants

    asyncio.run(conversation())


def test_an_unknown_authority_or_another_host_name_is_refused_by_tls(authority, tmp_path):
    async def conversation():
        async with Host(authority).running() as host:
            with pytest.raises(ProtocolViolation, match="--ca FILE"):
                await host.join(authority=make_authority(tmp_path / "other"))
        elsewhere = make_authority(tmp_path / "elsewhere", ("example.org",))
        async with Host(elsewhere).running() as host:
            with pytest.raises(ProtocolViolation, match="mismatch"):
                await host.join()
            assert not host.applicants

    asyncio.run(conversation())


def test_tls_1_2_is_refused(authority):
    async def conversation():
        async with Host(authority).running() as host:
            old = ssl.create_default_context(cafile=authority.authority)
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", host.port, ssl=old)
            await host.join()

    asyncio.run(conversation())


def test_a_server_that_is_not_there_or_is_another_is_told_in_one_line(authority):
    async def conversation():
        context = server_context(authority.certificate, authority.key)
        host = Host(authority)
        async with listening(Starlette(), "127.0.0.1", 0, context) as host.port:
            with pytest.raises(Unavailable, match=f"127.0.0.1:{host.port} is no Koinon server: it answered HTTP 403"):
                await host.join()
        with pytest.raises(Unavailable, match=f"127.0.0.1:{host.port} cannot be reached"):
            await host.join()

    asyncio.run(conversation())


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:1", "ws://a:1", "https://a:1", "wss://", "wss://a:b", "wss://a:1/x", "wss://u@a:1"]
)
def test_an_address_of_another_form_is_refused(url, authority):
    context = client_context(authority.authority)
    with pytest.raises(AdmissionError, match="wss://HOST:PORT"):
        asyncio.run(connect(url, NODE, pinned=SERVER.key, context=context, definition=DEFINITION))


def test_a_proxy_in_the_environment_does_not_come_between_loopback(authority, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def conversation():
        async with Host(authority).running() as host:
            for name in ("127.0.0.1", "localhost"):
                connection, _ = await host.join(host=name)
                await connection.close()

    asyncio.run(conversation())


def test_a_port_in_use_is_told_with_the_cure(authority):
    async def conversation():
        async with Host(authority).running() as host:
            context = server_context(authority.certificate, authority.key)
            with pytest.raises(
                Unavailable, match=f"port 127.0.0.1:{host.port} is in use; choose another with --listen"
            ):
                async with listening(Starlette(), "127.0.0.1", host.port, context):
                    pass
            with pytest.raises(Unavailable, match=r"cannot listen on 192\.0\.2\.1:"):
                async with listening(Starlette(), "192.0.2.1", 0, context):
                    pass

    asyncio.run(conversation())


def test_metrics_health_and_nothing_else(authority):
    async def conversation():
        async with Host(authority).running() as host:
            assert await host.get("/metrics") == (200, b"koinon_rounds 3\n")
            status, body = await host.get("/healthz")
            assert (status, json.loads(body)) == (200, {"run": "run", "round": 2})
            for path in ("/", "/federation", "/metrics/", "/docs", "/%00", "/../etc/passwd"):
                assert (await host.get(path))[0] == 404
            assert (await host.get("/metrics", "POST"))[0] == 405

    asyncio.run(conversation())


def test_stopping_the_server_ends_its_connections(authority):
    async def conversation():
        async with Host(authority).running() as host:
            connection, _ = await host.join()
            idle = await host.raw()
        with pytest.raises(Unavailable, match="cut"):
            await connection.receive()
        assert await idle[0].read() == b""
        idle[1].close()

    asyncio.run(conversation())


def test_a_cut_is_unavailable_at_both_ends(authority):
    async def conversation():
        ended = asyncio.Event()

        async def wait(connection):
            try:
                await connection.receive()
            finally:
                ended.set()

        async with Host(authority, wait).running() as host:
            connection, _ = await host.join()
            connection._pipe._socket._websocket.transport.abort()
            await ended.wait()
            assert isinstance(host.errors[0], Unavailable)
            with pytest.raises(Unavailable):
                await connection.receive()
            with pytest.raises(Unavailable):
                await connection.send(Heartbeat())

    asyncio.run(conversation())


@pytest.mark.parametrize("fault", ["replayed", "tampered", "truncated", "oversize", "text", "garbage"])
def test_a_bad_frame_ends_its_connection_alone(authority, fault, caplog):
    async def conversation():
        async with Host(authority).running() as host:
            good, _ = await host.join()
            bad, _ = await host.join()
            await host.echo(bad)
            frame = bytes(bad._channel.seal(Heartbeat()))
            websocket = bad._pipe._socket._websocket
            if fault == "replayed":
                await websocket.send(frame)
                assert await bad.receive() == Heartbeat()
            wrong = {
                "replayed": frame,
                "tampered": frame[:-1] + b"x",
                "truncated": frame[:50],
                "oversize": bytes(MAX_MESSAGE_BYTES + 1),
                "text": "text",
                "garbage": b"",
            }[fault]
            await websocket.send(wrong)
            with pytest.raises(ProtocolViolation, match="1009" if fault == "oversize" else "1008: the peer"):
                await bad.receive()
            await bad.close()
            await host.echo(good)
            await good.close()
            assert isinstance(host.errors[0], ProtocolViolation)
            assert any(record.levelno == logging.WARNING for record in caplog.records)

    asyncio.run(conversation())


def test_a_frame_of_an_earlier_connection_is_refused(authority):
    async def conversation():
        async with Host(authority).running() as host:
            first, _ = await host.join()
            second, _ = await host.join()
            await second._pipe.send(first._channel.seal(Heartbeat()))
            with pytest.raises(ProtocolViolation, match="signature"):
                await second.receive()
            await first.close()

    asyncio.run(conversation())


def test_a_bad_server_is_hung_up_on(authority):
    async def conversation():
        async def lie(connection):
            await connection._pipe.send(b"garbage")
            await connection.receive()

        async with Host(authority, lie).running() as host:
            connection, _ = await host.join()
            with pytest.raises(ProtocolViolation, match="frame of 7 bytes"):
                await connection.receive()
            with pytest.raises(Unavailable, match="closed"):
                await connection.send(Heartbeat())

    asyncio.run(conversation())


def test_a_node_of_another_version_is_told_both(authority):
    async def conversation():
        async with Host(authority).running() as host:
            url = f"wss://127.0.0.1:{host.port}/federation"
            context = client_context(authority.authority)
            async with websockets.asyncio.client.connect(url, ssl=context, proxy=None) as websocket:
                await websocket.send(encode(Hello(VERSION + 1, NODE.key, bytes(32))))
                with pytest.raises(websockets.ConnectionClosed, match=f"version {VERSION + 1}, the server {VERSION}"):
                    await websocket.recv()

    asyncio.run(conversation())


def test_who_does_not_finish_the_handshake_in_time_is_cut(authority, monkeypatch):
    monkeypatch.setattr(listen, "HANDSHAKE_S", 0.3)

    async def conversation():
        async with Host(authority).running() as host:
            connection, _ = await host.join()
            silent = await asyncio.open_connection("127.0.0.1", host.port)
            secure = await host.raw()
            slow = await host.raw()
            slow[1].write(b"GET /federation HTTP/1.1\r\nHost:")
            upgraded = await host.upgraded()
            for reader, writer in (silent, secure, slow, upgraded):
                with contextlib.suppress(ConnectionError):
                    await asyncio.wait_for(reader.read(), 10)
                writer.close()
            await host.echo(connection)
            await connection.close()

    asyncio.run(conversation())


def test_a_server_that_does_not_answer_is_given_up(authority, monkeypatch):
    monkeypatch.setattr(connecting, "HANDSHAKE_S", 0.3)

    async def conversation():
        async def mute(websocket):
            await websocket.recv()
            await websocket.wait_closed()

        context = server_context(authority.certificate, authority.key)
        host = Host(authority)
        async with websockets.asyncio.server.serve(mute, "127.0.0.1", 0, ssl=context) as server:
            host.port = next(iter(server.sockets)).getsockname()[1]
            with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
                await host.join()

    asyncio.run(conversation())


@pytest.mark.parametrize("upward", [True, False], ids=["node", "server"])
def test_many_tasks_may_send_at_once(authority, upward):
    async def conversation():
        async def pour(connection):
            async def some(task):
                for number in range(20):
                    await connection.send(Chunk(DEFINITION, number, bytes([task]) * 150_000))

            async with asyncio.TaskGroup() as group:
                for task in range(4):
                    group.create_task(some(task))

        async def drink(connection):
            received = [await connection.receive() for _ in range(80)]
            for task in range(4):
                assert [chunk.offset for chunk in received if chunk.data[0] == task] == list(range(20))

        async with Host(authority, drink if upward else pour).running() as host:
            connection, _ = await host.join()
            await (pour if upward else drink)(connection)
            with pytest.raises(Unavailable):
                await connection.receive()
        assert not host.errors

    asyncio.run(conversation())


@pytest.mark.parametrize("upward", [True, False], ids=["node", "server"])
def test_who_sends_waits_for_who_reads_and_a_cancelled_send_ends_the_connection(authority, upward):
    async def conversation():
        stop = asyncio.Event()

        async def pour(connection):
            for sent in range(100):
                try:
                    await asyncio.wait_for(connection.send(CHUNK), 0.5)
                except TimeoutError:
                    assert 1 <= sent < 30  # the sockets' buffers and little more
                    with pytest.raises(Unavailable, match="closed"):
                        await connection.send(Heartbeat())
                    stop.set()
                    return
            raise AssertionError("nothing held the sender back")

        async def ignore(_):
            await stop.wait()

        async with Host(authority, ignore if upward else pour).running() as host:
            connection, _ = await host.join()
            await (pour if upward else ignore)(connection)
            connection._pipe._socket._websocket.transport.abort()
        assert not host.errors

    asyncio.run(conversation())


def test_who_sends_pings_and_reads_no_pongs_is_cut(authority):
    async def conversation():
        async with Host(authority).running() as host:
            connection, _ = await host.join()
            _, writer = await host.upgraded()
            pings = (b"\x89\xfd" + bytes(4) + bytes(125)) * 1000
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(30):
                    while True:
                        writer.write(pings)
                        await writer.drain()
                        await asyncio.sleep(0)  # drain alone may never give way, so that the cut is not noticed
            await host.echo(connection)
            await connection.close()

    asyncio.run(conversation())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8))
def test_random_bytes_to_every_layer_leave_the_others_alone(room, floods):
    host, good, loop = room

    async def attack(flood, open_raw):
        _, writer = await open_raw()
        writer.write(flood)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.transport.abort()

    async def conversation():
        for flood in floods:
            await attack(flood, lambda: asyncio.open_connection("127.0.0.1", host.port))
            await attack(flood, host.raw)
            await attack(flood, host.upgraded)
            framed = bytes([0x82, 0x80 | 126]) + len(flood).to_bytes(2, "big") + bytes(4) + flood
            await attack(framed, host.upgraded)
        await host.echo(good)

    loop.run_until_complete(conversation())
    assert len(host.applicants) == 1


@pytest.fixture
def room(authority):
    """A running server, a good connection to it, and their loop."""
    loop = asyncio.new_event_loop()
    host = Host(authority)
    running = host.running()
    loop.run_until_complete(running.__aenter__())
    good, _ = loop.run_until_complete(host.join())
    yield host, good, loop
    loop.run_until_complete(good.close())
    loop.run_until_complete(running.__aexit__(None, None, None))
    loop.close()
