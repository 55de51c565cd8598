import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.errors import ProtocolViolation
from koinon.protocol.messages import (
    CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    VERSION,
    Accepted,
    Challenge,
    Chunk,
    Heartbeat,
    Hello,
    Proof,
    Welcome,
)
from koinon.wire import channel
from koinon.wire.channel import ENVELOPE_BYTES, HANDSHAKE_BYTES, Applicant
from koinon.wire.codec import encode
from koinon.wire.identity import Identity

NODE, SERVER, OTHER = Identity.generate(), Identity.generate(), Identity.generate()
CERTIFICATE, DEFINITION = "a" * 64, "d" * 64


def prove(greeting, challenged, *, pinned=SERVER.key, certificate=CERTIFICATE, identity=NODE):
    return channel.prove(
        identity,
        greeting,
        challenged,
        pinned=pinned,
        certificate=certificate,
        definition=DEFINITION,
        name="north",
        token="secret",
    )


def handshake():
    """(node's channel, server's channel, who the server sees)."""
    greeting = channel.hello(NODE)
    challenged = channel.challenge(SERVER, greeting, run="run", certificate=CERTIFICATE)
    node, proof = prove(greeting, challenged)
    server, applicant = channel.admit(SERVER, greeting, challenged, proof)
    return node, server, applicant


def test_both_sides_agree_and_the_server_knows_who_asks():
    node, server, applicant = handshake()
    assert node.session == server.session
    assert (node.peer, server.peer) == (SERVER.key, NODE.key)
    assert applicant == Applicant(NODE.key, DEFINITION, "north", "secret")


def test_two_handshakes_of_the_same_peers_are_two_sessions():
    assert handshake()[0].session != handshake()[0].session


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=99)), max_size=9))
def test_messages_arrive_as_sent_in_both_directions(conversation):
    node, server, _ = handshake()
    for upward, data in conversation:
        sender, receiver = (node, server) if upward else (server, node)
        message = Chunk(DEFINITION, 0, data)
        assert receiver.open(bytes(sender.seal(message))) == message


def test_the_largest_chunk_passes_and_costs_its_envelope():
    node, server, _ = handshake()
    chunk = Chunk(DEFINITION, 2**53 - 1, bytes(CHUNK_BYTES))
    frame = node.seal(chunk)
    assert len(frame) == len(encode(chunk)) + ENVELOPE_BYTES <= MAX_MESSAGE_BYTES
    assert server.open(frame) == chunk


def test_another_server_than_the_pinned_is_refused():
    greeting = channel.hello(NODE)
    challenged = channel.challenge(OTHER, greeting, run="run", certificate=CERTIFICATE)
    with pytest.raises(ProtocolViolation, match="is pinned"):
        prove(greeting, challenged)
    claimed = msgspec.structs.replace(msgspec.msgpack.decode(challenged, type=Challenge), key=SERVER.key)
    with pytest.raises(ProtocolViolation, match="signature"):
        prove(greeting, encode(claimed))


def test_another_certificate_than_the_server_vouched_for_is_refused():
    greeting = channel.hello(NODE)
    challenged = channel.challenge(SERVER, greeting, run="run", certificate=CERTIFICATE)
    with pytest.raises(ProtocolViolation, match="in between"):
        prove(greeting, challenged, certificate="b" * 64)


@pytest.mark.parametrize(
    "change", [{"nonce": bytes(32)}, {"run": "other"}, {"certificate": "b" * 64}, {"signature": bytes(64)}]
)
def test_a_changed_challenge_is_refused(change):
    greeting = channel.hello(NODE)
    challenged = channel.challenge(SERVER, greeting, run="run", certificate=CERTIFICATE)
    changed = msgspec.structs.replace(msgspec.msgpack.decode(challenged, type=Challenge), **change)
    with pytest.raises(ProtocolViolation):
        prove(greeting, encode(changed), certificate=changed.certificate)


def test_a_challenge_for_another_hello_is_refused():
    challenged = channel.challenge(SERVER, channel.hello(NODE), run="run", certificate=CERTIFICATE)
    with pytest.raises(ProtocolViolation, match="signature"):
        prove(channel.hello(NODE), challenged)


@pytest.mark.parametrize(
    "change", [{"definition": "e" * 64}, {"name": "south"}, {"name": None}, {"token": ""}, {"signature": bytes(64)}]
)
def test_a_changed_proof_is_refused(change):
    greeting = channel.hello(NODE)
    challenged = channel.challenge(SERVER, greeting, run="run", certificate=CERTIFICATE)
    _, proof = prove(greeting, challenged)
    changed = msgspec.structs.replace(msgspec.msgpack.decode(proof, type=Proof), **change)
    with pytest.raises(ProtocolViolation):
        channel.admit(SERVER, greeting, challenged, encode(changed))


def test_a_proof_by_another_key_or_for_another_challenge_is_refused():
    greeting = channel.hello(NODE)
    challenged = channel.challenge(SERVER, greeting, run="run", certificate=CERTIFICATE)
    again = channel.challenge(SERVER, greeting, run="run", certificate=CERTIFICATE)
    for proof in (prove(greeting, challenged, identity=OTHER)[1], prove(greeting, again)[1]):
        with pytest.raises(ProtocolViolation, match="signature"):
            channel.admit(SERVER, greeting, challenged, proof)


def test_versions_that_differ_are_told():
    greeting = encode(Hello(VERSION + 1, NODE.key, bytes(32)))
    with pytest.raises(ProtocolViolation, match=f"version {VERSION + 1}, the server {VERSION}"):
        channel.challenge(SERVER, greeting, run="run", certificate=CERTIFICATE)


def test_the_handshake_is_small_and_in_order():
    greeting = channel.hello(NODE)
    with pytest.raises(ProtocolViolation, match=f"at most {HANDSHAKE_BYTES}"):
        channel.challenge(SERVER, bytes(HANDSHAKE_BYTES + 1), run="run", certificate=CERTIFICATE)
    with pytest.raises(ProtocolViolation, match="Hello where Challenge is due"):
        prove(greeting, greeting)


@given(st.integers(0, 2**20), st.integers(0, 7), st.integers(0, 3))
def test_a_frame_with_one_flipped_bit_is_refused_and_the_channel_goes_on(place, bit, before):
    node, server, _ = handshake()
    for _ in range(before):
        server.open(node.seal(Heartbeat()))
    frame = node.seal(Chunk(DEFINITION, 7, b"data"))
    tampered = bytearray(frame)
    tampered[place % len(frame)] ^= 1 << bit
    with pytest.raises(ProtocolViolation, match="signature"):
        server.open(tampered)
    assert server.open(frame) == Chunk(DEFINITION, 7, b"data")


@given(st.integers(0, 200))
def test_a_truncated_frame_is_refused(length):
    node, server, _ = handshake()
    frame = node.seal(Chunk(DEFINITION, 7, b"data"))
    with pytest.raises(ProtocolViolation):
        server.open(frame[: length % len(frame)])


def test_oversize_is_refused_before_anything_is_computed():
    _, server, _ = handshake()
    with pytest.raises(ProtocolViolation, match=f"to {MAX_MESSAGE_BYTES}"):
        server.open(bytes(MAX_MESSAGE_BYTES + 1))


@given(st.permutations(range(4)))
def test_only_the_order_of_sending_is_accepted(order):
    node, server, _ = handshake()
    frames = [node.seal(Chunk(DEFINITION, number, b"")) for number in range(4)]
    due = 0
    for number in order:
        if number == due:
            assert server.open(frames[number]) == Chunk(DEFINITION, number, b"")
            due += 1
        else:
            with pytest.raises(ProtocolViolation, match="replayed" if number < due else "skipped"):
                server.open(frames[number])


def test_a_replay_is_named():
    node, server, _ = handshake()
    frame = node.seal(Heartbeat())
    server.open(frame)
    with pytest.raises(ProtocolViolation, match="replayed message 0; the next is 1"):
        server.open(frame)


def test_a_frame_of_another_session_direction_or_sender_is_refused():
    node, server, _ = handshake()
    other_node, _, _ = handshake()
    foreign = channel.Channel(OTHER, SERVER.key, node.session, node._outgoing, node._incoming, node._among)
    for frame in (other_node.seal(Heartbeat()), server.seal(Heartbeat()), foreign.seal(Heartbeat())):
        with pytest.raises(ProtocolViolation, match="signature"):
            server.open(frame)


def test_a_frame_sent_back_to_its_sender_is_refused_even_when_both_sides_are_one_identity():
    greeting = channel.hello(NODE)
    challenged = channel.challenge(NODE, greeting, run="run", certificate=CERTIFICATE)
    node, proof = prove(greeting, challenged, pinned=NODE.key)
    server, _ = channel.admit(NODE, greeting, challenged, proof)
    frame = node.seal(Heartbeat())
    with pytest.raises(ProtocolViolation, match="signature"):
        node.open(frame)
    assert server.open(frame) == Heartbeat()


def test_each_side_hears_only_what_the_other_may_say():
    node, server, _ = handshake()
    for message in (Welcome("north", "run", 1, 0), Accepted(1)):
        with pytest.raises(ProtocolViolation, match="malformed"):
            server.open(node.seal(message))
        node, server, _ = handshake()
    with pytest.raises(ProtocolViolation, match="malformed"):
        node.open(server.seal(Hello(VERSION, NODE.key, bytes(32))))


@given(st.binary(max_size=300))
def test_random_bytes_never_pass(data):
    node, server, _ = READY
    for side in (node, server):
        with pytest.raises(ProtocolViolation):
            side.open(data)


READY = handshake()
