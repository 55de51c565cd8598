"""Arriving updates: whatever is cut, killed or wrong, what is sealed is what was offered."""

import errno
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import ProtocolViolation, Unavailable
from koinon.durable.spool import Spool
from koinon.protocol.messages import Blob, Chunk
from koinon.update.codec import Float32, Shared, flat

LENGTH = 8
UPDATE = np.linspace(-1, 1, LENGTH, dtype="<f4").tobytes()


def blob(data):
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def spool(folder, kind=Spool):
    return kind(folder / "spool", Float32(), lambda round: Shared(flat(LENGTH), 0, round), most_bytes=4 * LENGTH)


def send(spool, data, start, stop, node="a", of=None):
    return spool.write(node, Chunk((of or blob(data)).digest, start, data[start:stop]))


def sealed(folder, data, of=None):
    of = of or blob(data)
    made = spool(folder)
    made.expect(1, "a", of)
    made.write("a", Chunk(of.digest, 0, data))
    return made, made.seal(1, "a", of)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.floats(0, 1)), min_size=1, max_size=30),
)
def test_any_cuts_and_torn_ends_and_restarts_lead_to_the_same_bytes(tmp_path_factory, cuts):
    folder = tmp_path_factory.mktemp("spool")
    made, update = spool(folder), blob(UPDATE)
    path = made.path(1, "a", update.digest)
    offset, complete = made.expect(1, "a", update), None
    for size, restart, kept in cuts:
        if restart:
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * kept)])
            made = spool(folder)
            offset = made.expect(1, "a", update)
            assert offset == path.stat().st_size
        if offset < len(UPDATE):
            complete = send(made, UPDATE, offset, offset + size)
            offset = min(offset + size, len(UPDATE))
            assert (complete is not None) == (offset == len(UPDATE))
    if offset < len(UPDATE):
        complete = send(made, UPDATE, offset, len(UPDATE))
    assert made.seal(1, "a", update) is None
    assert path.read_bytes() == UPDATE


def test_a_complete_update_says_whose_it_is(tmp_path):
    made = spool(tmp_path)
    assert made.expect(3, "a", blob(UPDATE)) == 0
    assert made.expects("a", blob(UPDATE)) and not made.expects("b", blob(UPDATE))
    assert send(made, UPDATE, 0, 16) is None
    complete = send(made, UPDATE, 16, 32)
    assert (complete.round, complete.blob) == (3, blob(UPDATE))
    assert not made.expects("a", blob(UPDATE))
    assert made.expect(3, "a", blob(UPDATE)) == 32


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (Chunk("0" * 64, 0, b"data"), "not expected"),
        (Chunk(blob(UPDATE).digest, 4, b"data"), "sends bytes from 4, 8 would be next"),
        (Chunk(blob(UPDATE).digest, 0, b"data"), "sends bytes from 0, 8 would be next"),
        (Chunk(blob(UPDATE).digest, 12, b"data"), "sends bytes from 12, 8 would be next"),
        (Chunk(blob(UPDATE).digest, 8, b"x" * 25), "more bytes than it offered"),
        (Chunk(blob(UPDATE).digest, 8, b""), "or none"),
    ],
)
def test_what_is_not_the_next_piece_is_refused_and_not_written(tmp_path, chunk, reason):
    made = spool(tmp_path)
    made.expect(1, "a", blob(UPDATE))
    send(made, UPDATE, 0, 8)
    with pytest.raises(ProtocolViolation, match=reason):
        made.write("a", chunk)
    assert made.path(1, "a", blob(UPDATE).digest).stat().st_size == 8


def test_nobody_writes_what_was_not_expected_of_them(tmp_path):
    made = spool(tmp_path)
    made.expect(1, "a", blob(UPDATE))
    with pytest.raises(ProtocolViolation, match="not expected"):
        send(made, UPDATE, 0, 8, node="b")
    made.forget("a")
    with pytest.raises(ProtocolViolation, match="not expected"):
        send(made, UPDATE, 0, 8)


def test_more_than_any_update_has_is_refused_before_a_byte_is_written(tmp_path):
    with pytest.raises(ProtocolViolation, match="offers 33 bytes; an update has at most 32"):
        spool(tmp_path).expect(1, "a", Blob("0" * 64, 33))
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, LENGTH - 1])
def test_values_that_are_not_finite_are_found(tmp_path, value, place):
    values = np.zeros(LENGTH, "<f4")
    values[place] = value
    made, fault = sealed(tmp_path, values.tobytes())
    assert fault == "the update holds NaN or infinite values"
    assert made.expect(1, "a", blob(values.tobytes())) == 0, "what is wrong is not kept"


def test_other_bytes_than_offered_are_found(tmp_path):
    _, fault = sealed(tmp_path, UPDATE[:-1] + b"\0", of=blob(UPDATE))
    assert fault == "the update's bytes do not have the offered digest"


def test_bytes_that_are_no_update_are_found(tmp_path):
    _, fault = sealed(tmp_path, UPDATE[:-4])
    assert fault.startswith("the update cannot be decoded")


def test_a_file_that_is_too_long_is_begun_anew(tmp_path):
    made = spool(tmp_path)
    path = made.path(1, "a", blob(UPDATE).digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(100))
    assert made.expect(1, "a", blob(UPDATE)) == 0


def test_what_comes_after_its_round_has_closed_is_dropped_in_silence(tmp_path):
    made = spool(tmp_path)
    made.expect(1, "a", blob(UPDATE))
    made.expect(2, "b", blob(UPDATE))
    made.end(through=1)
    made.drop(through=1)
    assert send(made, UPDATE, 0, 16) is None
    assert send(made, UPDATE, 16, 32) is None
    assert made.seal(1, "a", blob(UPDATE)) == "round 1 has closed without it"
    assert send(made, UPDATE, 0, 32, node="b") is not None
    assert made.seal(2, "b", blob(UPDATE)) is None


class FullSpool(Spool):
    """On a disk that takes three more bytes."""

    def _append(self, path, data):
        with path.open("ab") as file:
            file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_and_what_was_written_is_not_asked_for_again(tmp_path):
    full = spool(tmp_path, FullSpool)
    full.expect(1, "a", blob(UPDATE))
    with pytest.raises(Unavailable, match="No space left"):
        send(full, UPDATE, 0, 32)
    made = spool(tmp_path)
    assert made.expect(1, "a", blob(UPDATE)) == 3
    send(made, UPDATE, 3, 32)
    assert made.seal(1, "a", blob(UPDATE)) is None


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "spool").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot write"):
        spool(tmp_path).expect(1, "a", blob(UPDATE))
