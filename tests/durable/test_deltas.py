"""What the last rounds changed: kept as long as somebody may need it, and found again after a restart."""

import pytest

from koinon.core.errors import Unavailable
from koinon.durable.deltas import HEAD, Deltas
from koinon.protocol.messages import Blob

MODEL = Blob("f" * 64, 100)


def digest(round):
    return f"{round:064x}"


@pytest.fixture
def deltas(tmp_path):
    return Deltas(tmp_path / "deltas")


def test_what_is_kept_is_found_again_in_order(deltas):
    assert deltas.leading_to(MODEL, 0) == ()
    kept = tuple(deltas.keep(round, digest(round - 1), bytes([round]) * 10) for round in (1, 2, 3))
    assert [(delta.round, delta.base, delta.change.size) for delta in kept] == [
        (n, digest(n - 1), 10) for n in (1, 2, 3)
    ]
    assert deltas.leading_to(MODEL, 3) == kept
    assert deltas.leading_to(MODEL, 2) == kept[:2], "round 3 was never closed"
    assert deltas.path(2).read_bytes()[HEAD:] == bytes([2]) * 10


def test_only_as_many_are_found_as_are_shorter_than_the_model(deltas):
    kept = [deltas.keep(round, digest(round - 1), bytes(40)) for round in (1, 2, 3)]
    assert deltas.leading_to(MODEL, 3) == tuple(kept[1:])


def test_what_nobody_needs_goes_and_what_is_needed_stays(deltas):
    kept = [deltas.keep(round, digest(round - 1), bytes(10)) for round in (1, 2, 3, 4)]
    deltas.drop(4, needed=kept[1:])
    assert [deltas.path(round).exists() for round in (1, 2, 3, 4)] == [False, True, True, True]
    deltas.drop(4, needed=())
    assert [deltas.path(round).exists() for round in (1, 2, 3, 4)] == [False, False, False, True]


def test_a_disk_that_cannot_be_read_is_told(deltas):
    deltas.keep(1, digest(0), b"")
    deltas.path(2).mkdir()
    with pytest.raises(Unavailable, match="cannot read"):
        deltas.leading_to(MODEL, 2)
