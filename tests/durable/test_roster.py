"""Laws of the roster: one name, one identity, for ever; a token lets in one; what another process does is seen."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.errors import AdmissionError, ProtocolViolation, Unavailable
from koinon.durable import roster
from koinon.durable.roster import Entry, Roster, check_name
from koinon.wire.channel import Applicant
from koinon.wire.identity import key_text

KEYS = [bytes([number]) * 32 for number in range(4)]


def applicant(key, token=""):
    return Applicant(key, "d" * 64, None, token)


@pytest.fixture
def opened(tmp_path):
    """Two connections to one roster: a server's, and that of a command beside it."""
    both = Roster(tmp_path / "roster.db"), Roster(tmp_path / "roster.db")
    yield both
    for each in both:
        each.close()


def test_an_approved_identity_comes_in_under_its_name(opened):
    server, operator = opened
    operator.approve(KEYS[0], "north")
    assert server.admit(applicant(KEYS[0])) == "north"
    assert server.allowed(KEYS[0])
    assert not server.allowed(KEYS[1])


def test_an_unknown_identity_waits_and_is_told_how_to_be_approved(opened):
    server, operator = opened
    for _ in range(2):
        with pytest.raises(ProtocolViolation, match=f"koinon enroll approve {key_text(KEYS[0])} NAME"):
            server.admit(applicant(KEYS[0]))
    assert operator.entries() == [Entry("", KEYS[0], "waiting")]
    operator.approve(KEYS[0], "north")
    assert operator.entries() == [Entry("north", KEYS[0], "approved")]
    assert server.admit(applicant(KEYS[0])) == "north"


def test_a_revoked_identity_stays_out_even_with_a_token(opened):
    server, operator = opened
    operator.approve(KEYS[0], "north")
    operator.revoke("north")
    assert not server.allowed(KEYS[0])
    for token in ("", operator.invite("south")):
        with pytest.raises(ProtocolViolation, match="the identity of north was revoked; make a new one"):
            server.admit(applicant(KEYS[0], token))
    with pytest.raises(AdmissionError, match="the identity of north was revoked; it cannot come back"):
        operator.approve(KEYS[0], "north")


def test_a_token_is_good_once(opened):
    server, operator = opened
    token = operator.invite("north")
    assert server.admit(applicant(KEYS[0], token)) == "north"
    assert server.admit(applicant(KEYS[0], token)) == "north"  # it is known now, whatever it brings
    for key, wrong in ((KEYS[1], token), (KEYS[1], "guessed")):
        with pytest.raises(ProtocolViolation, match="unknown, used or expired; ask the operator"):
            server.admit(applicant(key, wrong))
    assert operator.entries() == [Entry("north", KEYS[0], "approved")]


def test_a_token_expires(opened, monkeypatch):
    server, operator = opened
    monkeypatch.setattr(roster, "TOKEN_DAYS", -1)
    with pytest.raises(ProtocolViolation, match="expired"):
        server.admit(applicant(KEYS[0], operator.invite("north")))


def test_a_token_for_a_taken_name_is_refused_and_not_used_up(opened):
    server, operator = opened
    token = operator.invite("north")
    operator.approve(KEYS[0], "north")
    for _ in range(2):
        with pytest.raises(ProtocolViolation, match="north is another identity's name"):
            server.admit(applicant(KEYS[1], token))


def test_the_tokens_themselves_are_nowhere_in_the_file(opened, tmp_path):
    token = opened[1].invite("north")
    assert all(token.encode() not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "-north", "../north", "no rth", "n" * 65, "nørth", "north\n"])
def test_what_cannot_be_a_name_is_refused(opened, name):
    _, operator = opened
    with pytest.raises(AdmissionError, match="cannot be a node's name; use up to 64"):
        operator.approve(KEYS[0], name)
    with pytest.raises(AdmissionError, match="cannot be a node's name"):
        operator.invite(name)
    assert operator.entries() == []


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_every_other_name_can_be(name):
    check_name(name)


def test_who_is_not_there_cannot_be_revoked(opened):
    with pytest.raises(AdmissionError, match="there is no node west"):
        opened[1].revoke("west")


def test_a_change_is_seen_once_and_only_by_others(opened):
    server, operator = opened
    assert not server.changed()
    operator.approve(KEYS[0], "north")
    assert server.changed()
    assert not server.changed()
    with contextlib.suppress(ProtocolViolation):
        server.admit(applicant(KEYS[1]))  # its own knock
    assert not server.changed()
    operator.revoke("north")
    assert server.changed()


def test_a_flood_of_strangers_is_not_remembered_without_end(opened, monkeypatch):
    monkeypatch.setattr(roster, "MOST_KNOCKS", 3)
    for key in KEYS:
        with pytest.raises(ProtocolViolation):
            opened[0].admit(applicant(key))
    assert [entry.key for entry in opened[1].entries()] == KEYS[:3]


def test_a_roster_that_cannot_be_opened_or_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot open the roster"):
        Roster(tmp_path / "file" / "roster.db")
    (tmp_path / "noise.db").write_bytes(b"no database" * 100)
    with pytest.raises(Unavailable, match="cannot open the roster"):
        Roster(tmp_path / "noise.db")


ACTIONS = st.one_of(
    st.tuples(st.just("approve"), st.sampled_from(KEYS), st.sampled_from("abc")),
    st.tuples(st.just("revoke"), st.none(), st.sampled_from("abc")),
    st.tuples(st.just("invite"), st.sampled_from(KEYS), st.sampled_from("abc")),
    st.tuples(st.just("knock"), st.sampled_from(KEYS), st.none()),
)


@given(st.lists(ACTIONS, max_size=12))
def test_whatever_is_done_a_name_never_passes_to_another_identity(actions):
    with tempfile.TemporaryDirectory() as folder:
        book, owners = Roster(Path(folder) / "roster.db"), {}
        for action, key, name in actions:
            with contextlib.suppress(AdmissionError, ProtocolViolation):
                match action:
                    case "approve":
                        book.approve(key, name)
                    case "revoke":
                        book.revoke(name)
                    case "invite":
                        book.admit(applicant(key, book.invite(name)))
                    case "knock":
                        book.admit(applicant(key))
            entries = [entry for entry in book.entries() if entry.name]
            assert len({entry.name for entry in entries}) == len({entry.key for entry in entries}) == len(entries)
            for entry in book.entries():
                assert book.allowed(entry.key) == (entry.status == "approved")
                if entry.name:
                    assert owners.setdefault(entry.name, entry.key) == entry.key
        book.close()
