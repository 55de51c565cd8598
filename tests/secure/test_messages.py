"""Bytes from a peer: a message, or a ProtocolViolation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import ProtocolViolation
from koinon.secure.messages import FromClient, FromServer, decode, encode
from tests.secure.world import World

LIMIT = 1 << 20
PHASES = {"Invitation": "share", "Delivery": "mask", "Survivors": "agree", "Agreement": "unmask"}
WORLDS = {kind: World() for kind in PHASES}
GENUINE = [item for kind, phase in PHASES.items() for item in WORLDS[kind].until(phase).items()]
"""What a server says, and for each kind of it a world whose clients wait for that."""


@given(st.binary(max_size=300), st.sampled_from([FromClient, FromServer]))
def test_any_bytes_are_refused_or_read(data, among):
    try:
        message = decode(data, among, LIMIT)
    except ProtocolViolation:
        return
    assert decode(encode(message), among, LIMIT) == message


@settings(max_examples=200)
@given(st.sampled_from(GENUINE), st.data())
def test_changed_messages_are_refused_or_read_and_no_client_crashes(genuine, data):
    """One byte of a genuine message is another: the client refuses, or answers; nothing else is raised."""
    name, message = genuine
    raw = bytearray(encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        WORLDS[type(message).__name__].hear(name, decode(raw, FromServer, LIMIT))
    except ProtocolViolation:
        return


@pytest.mark.parametrize(("name", "message"), GENUINE[::5])
def test_messages_are_read_back(name, message):
    assert decode(encode(message), FromServer, LIMIT) == message
    with pytest.raises(ProtocolViolation, match="malformed"):
        decode(encode(message), FromClient, LIMIT)
    with pytest.raises(ProtocolViolation, match="at most 10"):
        decode(encode(message), FromServer, 10)
