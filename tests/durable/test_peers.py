"""Whom a node trusts: the owner's list, or whoever it met first by a name."""

import pytest

from koinon.core.errors import Unavailable, VerificationFailed
from koinon.durable.peers import Peers
from koinon.secure.messages import Entry


def entry(name: str, key: int) -> Entry:
    return Entry(name, bytes([key]) * 32, "0" * 64, bytes(64))


def test_whoever_is_met_first_is_the_one_also_after_a_restart(tmp_path):
    path = tmp_path / "peers.json"
    peers = Peers(path)
    peers.met((entry("ann", 1),))
    for known in (peers, Peers(path)):
        assert known.among((entry("ann", 2), entry("bob", 3))) == {"ann": bytes([1]) * 32, "bob": bytes([3]) * 32}


def test_who_was_looked_at_is_not_yet_met(tmp_path):
    peers = Peers(tmp_path / "peers.json")
    peers.among((entry("ann", 1),))
    assert peers.among((entry("ann", 2),)) == {"ann": bytes([2]) * 32}
    assert not list(tmp_path.iterdir())


def test_another_key_never_replaces_the_first_while_new_names_are_added(tmp_path):
    path = tmp_path / "peers.json"
    peers = Peers(path)
    peers.met((entry("ann", 1),))
    peers.met((entry("ann", 2), entry("bob", 3)))
    assert Peers(path).among(()) == {"ann": bytes([1]) * 32, "bob": bytes([3]) * 32}


def test_a_list_is_never_added_to_and_nothing_is_written(tmp_path):
    path = tmp_path / "peers.json"
    path.write_bytes(b"damaged, and not looked at")
    listed = {"ann": bytes([1]) * 32}
    peers = Peers(path, listed)
    peers.met((entry("bob", 3),))
    assert peers.among((entry("ann", 2), entry("bob", 3))) == listed
    assert path.read_bytes() == b"damaged, and not looked at"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"ann": 1}', b'{"ann": "\xff"}'])
def test_a_damaged_file_is_told_in_one_line_with_the_cure(tmp_path, content):
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    with pytest.raises(VerificationFailed, match=r"peers\.json is damaged; restore it, or remove it") as told:
        Peers(path)
    assert "\n" not in str(told.value)


def test_who_cannot_be_written_down_is_not_met(tmp_path):
    folder = tmp_path / "gone"
    peers = Peers(folder / "peers.json")
    with pytest.raises(Unavailable, match="cannot write"):
        peers.met((entry("ann", 1),))
    assert peers.among(()) == {}
    folder.mkdir()
    peers.met((entry("ann", 1),))
    assert peers.among(()).keys() == {"ann"}
