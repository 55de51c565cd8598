"""Network profiles, and the relay that slows real sockets down to them."""

import contextlib
import hashlib
import math
import socket
import socketserver
import threading
import time

import pytest

import koinon as kn
from koinon.core.network import NETWORKS, PACKET_BYTES, Network
from koinon.run.shaping import Relay

FAST = Network(up_mbit=1e4, down_mbit=1e4, round_trip_ms=0.0)


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it is sent, until the sender has ended."""

    def handle(self):
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


@pytest.fixture
def echo():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # who reads is told of a cut
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def speak_until_cut(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        while True:
            connection.sendall(b"x")
            if not connection.recv(1):
                raise ConnectionResetError
            time.sleep(0.01)


def exchange(port: int, data: bytes) -> tuple[bytes, float]:
    """What comes back of `data`, and after how many seconds all of it was there."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        began = time.monotonic()
        sender = threading.Thread(target=send, args=(connection, data))
        sender.start()
        received = bytearray()
        while piece := connection.recv(1 << 16):
            received += piece
        took = time.monotonic() - began
        sender.join()
    return bytes(received), took


def test_bytes_come_out_as_they_went_in_whatever_the_network(echo):
    data = hashlib.shake_256(b"").digest(3_000_001)
    jittery = Network(up_mbit=400.0, down_mbit=400.0, round_trip_ms=4.0, jitter_ms=20.0, loss=0.05)
    for network in (FAST, jittery):
        with Relay(network, echo, ["a", "b"]) as relay:
            assert relay.port("a") != relay.port("b")
            assert exchange(relay.port("a"), data)[0] == data
            assert exchange(relay.port("b"), b"")[0] == b""


@pytest.mark.parametrize(
    ("network", "size", "at_least"),
    [
        (Network(up_mbit=8.0, down_mbit=1e4, round_trip_ms=0.0), 1_000_000, 1.0),
        (Network(up_mbit=1e4, down_mbit=8.0, round_trip_ms=0.0), 1_000_000, 1.0),
        (Network(up_mbit=1e4, down_mbit=1e4, round_trip_ms=500.0), 1, 0.5),
        (Network(up_mbit=1e4, down_mbit=1e4, round_trip_ms=200.0, loss=0.999), 1, 0.4),
    ],
    ids=["up", "down", "round trip", "loss"],
)
def test_nothing_is_sooner_than_the_network_allows(echo, network, size, at_least):
    with Relay(network, echo, ["node"]) as relay:
        data, took = exchange(relay.port("node"), bytes(size))
    assert len(data) == size
    assert took > 0.97 * at_least


def test_a_sender_has_to_wait_for_the_network(echo):
    """Otherwise the relay would hold all that is under way."""
    with (
        Relay(Network(up_mbit=8.0, down_mbit=1e4, round_trip_ms=0.0), echo, ["node"]) as relay,
        socket.create_connection(("127.0.0.1", relay.port("node"))) as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        began = time.monotonic()
        connection.sendall(bytes(1_500_000))
        assert time.monotonic() - began > 1.0


def test_links_do_not_share_their_bandwidth(echo):
    """Four that shared one link's would need four seconds."""
    network = Network(up_mbit=8.0, down_mbit=1e4, round_trip_ms=0.0)
    took = []
    with Relay(network, echo, ["a", "b", "c", "d"]) as relay:
        ports = [relay.port(node) for node in "abcd"]
        threads = [
            threading.Thread(target=lambda at=at: took.append(exchange(at, bytes(1_000_000))[1])) for at in ports
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(0.97 < each < 3.9 for each in took)


def test_a_cut_breaks_the_connection_and_heals(echo):
    network = Network(up_mbit=1e4, down_mbit=1e4, round_trip_ms=0.0, cuts_per_hour=7200.0, cut_s=0.05)
    with Relay(network, echo, ["node"]) as relay:
        with pytest.raises(ConnectionError):
            speak_until_cut(relay.port("node"))  # the mean time to the next cut is half a second
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError):
                if exchange(relay.port("node"), b"again")[0] == b"again":
                    return
    pytest.fail("the link did not heal")


def test_a_relay_without_its_server_refuses():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Relay(FAST, port, ["node"]) as relay, contextlib.suppress(ConnectionResetError):
        assert exchange(relay.port("node"), b"")[0] == b""


def test_seconds_are_two_round_trips_and_the_bytes():
    network = Network(up_mbit=8.0, down_mbit=80.0, round_trip_ms=100.0)
    assert network.seconds(1_000_000, 10_000_000) == pytest.approx(0.2 + 1.0 + 1.0)
    assert NETWORKS["dsl"].seconds(0, 0) == pytest.approx(0.08 + 4 * 0.0025)


def test_loss_limits_what_tcp_can_use():
    lossy = Network(up_mbit=1000.0, down_mbit=0.1, round_trip_ms=100.0, loss=0.01)
    assert lossy.up.bytes_per_s == pytest.approx(PACKET_BYTES / 0.1 * math.sqrt(150))
    assert lossy.down.bytes_per_s == pytest.approx(0.1e6 / 8)


def test_a_profile_is_read_from_toml(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("up_mbit = 2\ndown_mbit = 16.5\nround_trip_ms = 30\nloss = 0.01\n")
    assert Network.named(str(path)) == Network(up_mbit=2, down_mbit=16.5, round_trip_ms=30, loss=0.01)
    assert Network.named("slow-3g").up_mbit == 0.4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("up_mbit = 2\ndown_mbit = 2\n", "round_trip_ms is missing; a network profile needs it"),
        ("up_mbit = 0\ndown_mbit = 2\nround_trip_ms = 1\n", "up_mbit = 0"),
        ("up_mbits = 2\n", "did you mean up_mbit?"),
        ("up_mbit = 2\ndown_mbit = 2\nround_trip_ms = 1\nloss = 1.0\n", "loss = 1.0"),
        ("up_mbit = inf\ndown_mbit = 2\nround_trip_ms = 1\n", "up_mbit is inf"),
        ("up_mbit = nan\ndown_mbit = 2\nround_trip_ms = 1\n", "up_mbit"),
        ("up_mbit =", "not valid TOML"),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(kn.AdmissionError, match=words):
        Network.named(str(path))


def test_an_unknown_network_is_told_with_those_there_are():
    with pytest.raises(kn.Unavailable, match="there is no network wlan; write slow-3g, dsl, lan or a profile's file"):
        Network.named("wlan")
