"""A node's memory: what was written is there after a restart, and what is damaged is fetched anew."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import Unavailable
from koinon.core.statistics import Ratio
from koinon.durable.journal import Journal
from koinon.protocol.messages import Blob, Chunk, Offer
from koinon.protocol.node import Entry

MODEL = torch.linspace(0, 1, 8).numpy().tobytes()


def blob(data):
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def entry(update, round=1):
    return Entry("0" * 64, Offer(round, update, 2.0, 3, {"loss": Ratio(1.0, 2.0)}, 0.5))


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "run")
    yield made
    made.close()


def reopened(journal):
    journal.close()
    journal.__init__(journal.folder)
    return journal


def test_the_folder_is_the_owners_alone(journal):
    assert journal.folder.stat().st_mode & 0o077 == 0


def test_entries_and_updates_survive(journal):
    kept = journal.keep(1, b"update", {"0.rounds": torch.tensor(1)})
    assert kept == blob(b"update")
    journal.remember(1, entry(kept))
    journal = reopened(journal)
    assert journal.entries() == {1: entry(kept)}
    assert journal.update(1).read_bytes() == b"update"
    assert torch.equal(journal.state(before=2)["0.rounds"], torch.tensor(1))


def test_an_ended_round_stays_known_and_its_update_goes(journal):
    journal.remember(1, entry(journal.keep(1, b"update", {})))
    journal.remember(1, Entry("0" * 64, None))
    assert reopened(journal).entries() == {1: Entry("0" * 64, None)}
    assert not journal.update(1).exists()


def test_an_update_that_nobody_will_ask_for_goes_and_one_that_is_owed_stays(journal):
    journal.remember(1, entry(journal.keep(1, b"owed", {})))
    journal.keep(2, b"its round was over", {})
    journal.keep(3, b"next", {})
    assert [journal.update(round).exists() for round in (1, 2, 3)] == [True, False, True]


def test_state_is_that_of_the_last_round_that_was_remembered(journal):
    assert journal.state(before=1) is None
    for round in (1, 2, 3):
        kept = journal.keep(round, b"update", {"value": torch.tensor(round)})
        if round != 3:
            journal.remember(round, entry(kept, round))
    assert journal.state(before=2)["value"] == 1
    assert journal.state(before=4)["value"] == 2, "round 3 was killed before it was remembered"
    assert journal.state(before=3)["value"] == 2


def test_what_a_codec_left_out_is_taken_back_with_a_refused_update(journal):
    for round in (1, 2):
        state = {"0.rounds": torch.tensor(round), "codec.left": torch.tensor(10.0 * round)}
        journal.remember(round, entry(journal.keep(round, b"update", state), round))
    for _ in range(2):  # a node that is killed in between does it again
        journal.take_back(2, "codec.")
        journal = reopened(journal)
    journal.take_back(7, "codec.")
    kept = journal.state(before=3)
    assert (kept["0.rounds"], kept["codec.left"]) == (2, 10)


def test_of_the_first_round_all_that_was_left_out_is_taken_back(journal):
    journal.remember(1, entry(journal.keep(1, b"update", {"codec.left": torch.ones(2)})))
    journal.take_back(1, "codec.")
    assert journal.state(before=2) == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.floats(0, 1)), max_size=20))
def test_a_download_goes_on_after_any_cuts_and_torn_ends(tmp_path_factory, cuts):
    journal, model = Journal(tmp_path_factory.mktemp("journal") / "run"), blob(MODEL)
    whole = journal.expect(model)
    for size, restart, kept in [*cuts, (len(MODEL), False, 0)]:
        if restart:
            path = journal.folder / f"model-{model.digest}"
            path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
            whole = reopened(journal).expect(model)
        held, offset = journal.holding()
        assert held == model.digest and whole == (offset == len(MODEL))
        if not whole:
            whole = journal.write(model, Chunk(model.digest, offset, MODEL[offset : offset + size]))
    assert whole and journal.model(model.digest).numpy().tobytes() == MODEL
    journal.close()


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk("0" * 64, 0, b"data"),
        Chunk(blob(MODEL).digest, 4, b"data"),
        Chunk(blob(MODEL).digest, 0, MODEL + b"more"),
    ],
)
def test_pieces_that_are_not_the_next_are_ignored(journal, chunk):
    journal.expect(blob(MODEL))
    assert not journal.write(blob(MODEL), chunk)
    assert journal.holding() == (blob(MODEL).digest, 0)


def test_another_model_takes_the_place_of_the_first(journal):
    journal.expect(blob(b"first"))
    journal.write(blob(b"first"), Chunk(blob(b"first").digest, 0, b"fi"))
    assert not journal.expect(blob(MODEL))
    assert journal.holding() == (blob(MODEL).digest, 0)


def test_a_damaged_model_is_fetched_from_its_beginning(journal):
    model = blob(MODEL)
    journal.expect(model)
    with pytest.raises(Unavailable, match="announced digest"):
        journal.write(model, Chunk(model.digest, 0, bytes(len(MODEL))))
    assert journal.holding() == (model.digest, 0)
    assert not journal.expect(model)
    assert journal.write(model, Chunk(model.digest, 0, MODEL))
    (journal.folder / f"model-{model.digest}").write_bytes(MODEL + b"more")
    assert not journal.expect(model)


def test_a_full_disk_is_said_and_the_entry_is_as_it_was(journal):
    journal.remember(1, entry(blob(b"update")))
    journal._database.execute("PRAGMA max_page_count = 3").fetchone()
    large = Entry("0" * 64, Offer(2, blob(b""), 1.0, 1, {"x" * 9000: Ratio(0.0, 0.0)}, 0.0))
    with pytest.raises(Unavailable, match="cannot write to the node's journal"):
        journal.remember(2, large)
    assert journal.entries() == {1: entry(blob(b"update"))}


def test_a_missing_folder_is_said(journal):
    journal.close()
    for path in journal.folder.iterdir():
        path.unlink()
    journal.folder.rmdir()
    with pytest.raises(Unavailable):
        journal.expect(blob(MODEL))
    journal.folder.write_text("in the way")
    with pytest.raises(Unavailable, match="cannot open the node's journal"):
        Journal(journal.folder)
