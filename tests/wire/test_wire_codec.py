import importlib.util
import resource
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.core.statistics import Ranking, Ratio, Variation
from koinon.protocol.messages import (
    CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    Accepted,
    Blob,
    Chunk,
    Declined,
    FromNode,
    FromServer,
    Goodbye,
    Handshake,
    Heartbeat,
    Hello,
    Message,
    Offer,
    Welcome,
)
from koinon.wire.codec import decode, encode, encode_behind

DIGEST = "0" * 64
UNIONS = (FromNode, FromServer, Handshake)

rounds = st.integers(0, 2**31 - 1)
sizes = st.integers(0, 2**53 - 1)
blobs = st.builds(Blob, st.just(DIGEST), sizes)
floats = st.floats(allow_nan=False)
statistics = st.one_of(
    st.builds(Ratio, floats, floats),
    st.builds(Variation, floats, floats, floats, floats),
    st.lists(st.tuples(*[st.integers(0, 2**40)] * 2), max_size=9).map(
        lambda bins: Ranking(*map(tuple, zip(*bins, strict=True))) if bins else Ranking((), ())
    ),
)
positives = st.floats(0, 1e17)
from_node = st.one_of(
    st.builds(Chunk, st.just(DIGEST), sizes, st.binary()),
    st.builds(
        Offer, rounds, blobs, positives, sizes, st.dictionaries(st.text(max_size=9), statistics, max_size=9), positives
    ),
    st.builds(Declined, rounds, st.text(max_size=99)),
    st.just(Heartbeat()),
)


@given(from_node)
def test_decode_undoes_encode(message):
    data = encode(message)
    assert decode(data, FromNode) == message
    assert encode_behind(message, 72) == bytes(72) + data


@given(from_node, st.integers(0, 2**31), st.integers(0, 255))
def test_one_changed_byte_gives_a_message_or_a_violation(message, place, value):
    data = bytearray(encode(message))
    data[place % len(data)] = value
    for union in UNIONS:
        _message_or_violation(bytes(data), union)


@given(st.binary(max_size=300))
def test_random_bytes_give_a_message_or_a_violation(data):
    for union in UNIONS:
        _message_or_violation(data, union)


@given(from_node, st.binary(min_size=1, max_size=3))
def test_nothing_may_be_missing_or_follow(message, more):
    data = encode(message)
    for wrong in (data[:-1], data + more):
        with pytest.raises(ProtocolViolation):
            decode(wrong, FromNode)


def test_a_node_cannot_say_what_only_the_server_says():
    for message in (Welcome("a", "r", 1, 0), Goodbye("no", final=True), Accepted(1)):
        assert decode(encode(message), FromServer) == message
        with pytest.raises(ProtocolViolation, match=type(message).__name__):
            decode(encode(message), FromNode)


def test_a_violation_is_one_printable_line():
    data = msgspec.msgpack.encode({"type": "\x1b[2J\nroot:"})
    with pytest.raises(ProtocolViolation) as caught:
        decode(data, FromNode)
    assert str(caught.value).isprintable()


def test_size_is_checked_before_decoding():
    with pytest.raises(ProtocolViolation, match="at most 10 "):
        decode(encode(Heartbeat()), FromNode, limit=10)
    with pytest.raises(ProtocolViolation, match=f"at most {MAX_MESSAGE_BYTES} "):
        decode(bytes(MAX_MESSAGE_BYTES + 1), FromNode)


def test_the_largest_chunk_fits_and_more_is_refused_where_it_is_made():
    chunk = Chunk(DIGEST, 2**53 - 1, bytes(CHUNK_BYTES))
    assert len(encode_behind(chunk, 72)) <= MAX_MESSAGE_BYTES
    huge = Ranking((2**40,) * 100_000, (2**40,) * 100_000)
    with pytest.raises(AdmissionError, match="fewer bins"):
        encode_behind(_offer({"auroc": huge}), 72)


@pytest.mark.parametrize("announced", [2**24, 2**32 - 1])
@pytest.mark.parametrize("header", [0xDD, 0xDF, 0xDB, 0xC6, 0xC9], ids=["array", "map", "str", "bin", "ext"])
def test_a_header_that_announces_billions_costs_nothing(header, announced):
    bomb = bytes([header]) + struct.pack(">I", announced) + b"\x01"
    places = [
        bomb,
        b"\x81" + bomb,
        b"\x82\xa4type\xa5Chunk\xa4data" + bomb,
        b"\x82\xa4type\xa5Offer\xa7metrics" + bomb,
        b"\x82\xa4type\xa5Offer\xa7metrics\x81\xa1a" + bomb,
        b"\x82\xa4type\xa5Offer\xa7metrics\x81\xa1a\x93\xa7ranking" + bomb,
        b"\x82\xa4type\xa5Offer\xa7metrics\x81\xa1a\x93\xa5ratio" + bomb,
    ]
    for data in places:
        for union in UNIONS:
            assert _peak(data, union) < 64 << 10


def test_memory_is_a_small_multiple_of_the_message():
    bins = tuple(range(1000, 1000 + 150_000))
    data = encode(_offer({"auroc": Ranking(bins, bins)}))
    assert _peak(data, FromNode) < 24 * len(data)


def test_deep_nesting_is_a_violation():
    deep = b"\x82\xa4type\xa5Offer\xa7metrics\x81\xa1a\x94\xa5ratio\xcb" + bytes(8) + b"\xcb" + bytes(8)
    for nest in (b"\x91", b"\x81\x01"):
        with pytest.raises(ProtocolViolation):
            decode(deep + nest * 100_000, FromNode)
        with pytest.raises(ProtocolViolation):
            decode(nest * 100_000, FromNode)


def test_handshake_fields_have_exact_sizes():
    assert decode(encode(Hello(1, bytes(32), bytes(32))), Handshake)
    for key, nonce in ((bytes(31), bytes(32)), (bytes(32), bytes(33))):
        with pytest.raises(ProtocolViolation):
            decode(encode(Hello(1, key, nonce)), Handshake)


def test_fuzzing_by_coverage_finds_nothing():
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    target = Path(__file__).with_name("fuzz_codec.py")
    # What Linux calls a process's greatest memory includes that of the process which started it: this one.
    most = 1024 + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    command = [
        sys.executable,
        str(target),
        "-max_total_time=3",
        "-max_len=200",
        "-verbosity=0",
        f"-rss_limit_mb={most}",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=target.parent)
    assert ended.returncode == 0, ended.stderr


def _offer(metrics):
    return Offer(1, Blob(DIGEST, 1), 1.0, 1, metrics, 1.0)


def _message_or_violation(data, union):
    try:
        assert isinstance(decode(data, union), Message)
    except ProtocolViolation as error:
        assert str(error).isprintable()


def _peak(data, union):
    _message_or_violation(data, union)
    tracemalloc.start()
    _message_or_violation(data, union)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak
