"""A run's record: durable, resumable, and no edit goes unnoticed."""

import math
import sqlite3
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import Unavailable, VerificationFailed
from koinon.core.statistics import Ratio
from koinon.durable.history import Participation, RoundRecord, RunInfo
from koinon.durable.store import Store
from koinon.protocol.events import HandedOver, RoundExtended, RoundOpened, RunEnded, Settled, Summed
from koinon.protocol.messages import Blob, Delivered, Offer

INFO = RunInfo("run", "app.py", "d" * 64, 2, 7, 8, "2000-01-01T00:00:00Z", "running", "network")
OPENED = RoundOpened(1, ("a", "b"), 2, 1)
OFFER = Offer(1, Blob("e" * 64, 32), 3.0, 3, {"train_loss": Ratio(1.0, 2.0), "accuracy": Ratio(1.0, 4.0)}, 0.5)
ACCEPTED = Settled(1, "a", "accepted", "", OFFER)
DECLINED = Settled(1, "b", "declined", "not today")
RECORD = RoundRecord(
    1, "f" * 64, 2.0, (Participation("a", "accepted", examples=3), Participation("b", "declined", "not today"))
)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "run")
    made.begin(INFO)
    yield made
    made.close()


def filled(store):
    store.persist(OPENED)
    store.persist(ACCEPTED, DECLINED)
    store.evaluated(0, "a", {"accuracy": Ratio(1.0, 4.0)})
    store.close_round(RECORD)
    store.persist(RoundOpened(2, ("a",), 1, 1))
    store.persist(RoundExtended(2, ("c",)))
    store.persist(HandedOver("a", Delivered("f" * 64, {})), RunEnded("finished", ""))
    store.note("node refused", reason="unknown key")
    return store


def edit(store, statement):
    database = sqlite3.connect(store.folder / "run.db", isolation_level=None)
    assert database.execute(statement).rowcount > 0
    database.close()


def test_everything_is_there_after_a_restart(store):
    filled(store)
    store.close()
    again = Store(store.folder)
    assert again.info() == msgspec.structs.replace(INFO, status="finished")
    assert again.completed() == 1
    assert again.open_round() == (RoundOpened(2, ("a",), 1, 1), (RoundExtended(2, ("c",)),), (), ())
    assert list(again.settled(1)) == [ACCEPTED, DECLINED]
    assert again.nodes() == {"a": True, "b": False, "c": False}
    assert list(again.nodes()) == ["a", "b", "c"]
    (record,) = again.history()
    assert record.digest == RECORD.digest and record.participants == RECORD.participants
    assert again.verify() == 11
    again.close()


def test_what_happened_in_a_secure_sum_is_there_in_order_until_the_next_attempt_or_round(store):
    happened = (Summed(1, "a", b"keys"), Summed(1, None, group=2), Summed(1, "b", offer=ACCEPTED.offer))
    store.persist(RoundOpened(1, ("a", "b"), 2, 2), *happened)
    store.close()
    again = Store(store.folder)
    assert again.open_round() == (RoundOpened(1, ("a", "b"), 2, 2), (), (), happened)
    second = RoundOpened(1, ("a", "c"), 2, 2, attempt=1)
    again.persist(second)
    assert again.open_round() == (second, (), (), ())
    assert again.verify() == 3
    again.persist(Summed(1, "a", b"keys"), RECORD, RoundOpened(2, ("a",), 1, 1))
    assert again.open_round() == (RoundOpened(2, ("a",), 1, 1), (), (), ())
    again.verify()
    again.close()


def test_a_new_store_holds_nothing(tmp_path):
    store = Store(tmp_path / "run")
    assert store.info() is None and store.open_round() is None
    assert store.completed() == 0 and store.history() == [] and store.nodes() == {} and store.verify() == 0
    store.close()


def test_what_nodes_said_of_a_model_is_in_its_record(store):
    filled(store)
    store.evaluated(1, "a", {"accuracy": Ratio(1.0, 4.0)})
    store.evaluated(1, "b", {"accuracy": Ratio(4.0, 4.0)})
    store.evaluated(1, "c", {})
    (record,) = store.history()
    assert record.federated == record.metrics == {"accuracy": 5 / 8}
    assert record.by_client == {"a": {"accuracy": 1 / 4}, "b": {"accuracy": 1.0}}
    store.verify()


def test_values_that_are_not_finite_are_kept(store):
    filled(store)
    store.evaluated(1, "a", {"loss": Ratio(math.inf, 1.0), "accuracy": Ratio(0.0, 0.0)})
    store.close_round(msgspec.structs.replace(RECORD, round=2, training={"loss": math.nan}))
    first, second = store.history()
    assert first.federated["loss"] == math.inf and math.isnan(first.federated["accuracy"])
    assert math.isnan(second.training["loss"])
    store.verify()


records = st.sampled_from(
    [
        OPENED,
        ACCEPTED,
        DECLINED,
        replace(DECLINED, reason="another day"),
        RoundExtended(1, ("c",)),
        RunEnded("aborted", ""),
    ]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(records, max_size=3), max_size=8))
def test_the_first_word_on_a_part_stays_and_repeating_it_breaks_nothing(tmp_path_factory, batches):
    store = Store(tmp_path_factory.mktemp("store") / "run")
    store.begin(INFO)
    store.persist(OPENED)
    first = {}
    for batch in batches:
        store.persist(*batch)
        for record in batch:
            if isinstance(record, Settled):
                first.setdefault(record.node, record)
    assert {record.node: record for record in store.settled(1)} == first
    assert store.open_round()[0] == OPENED
    store.verify()
    store.close()


class DyingStore(Store):
    """Is killed at the second record of a batch."""

    def _settle(self, record):
        super()._settle(record)
        if record.node == "b":
            raise KeyboardInterrupt


def test_records_that_belong_together_are_written_together_or_not_at_all(tmp_path):
    store = DyingStore(tmp_path / "run")
    store.begin(INFO)
    store.persist(OPENED)
    with pytest.raises(KeyboardInterrupt):
        store.persist(ACCEPTED, DECLINED)
    assert store.settled(1) == () and store.verify() == 2
    store.persist(ACCEPTED)
    assert store.settled(1) == (ACCEPTED,) and store.verify() == 3
    store.close()


def test_a_full_disk_is_said_and_when_there_is_room_again_all_goes_on(store):
    store.persist(OPENED)
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    with pytest.raises(Unavailable, match="cannot write to the run's store"):
        store.persist(ACCEPTED, replace(DECLINED, reason="x" * 50_000))
    assert store.settled(1) == ()
    store._database.execute(f"PRAGMA max_page_count = {pages + 1000}").fetchone()
    store.persist(ACCEPTED, DECLINED)
    assert list(store.settled(1)) == [ACCEPTED, DECLINED]
    store.verify()


def test_a_store_that_cannot_be_opened_is_said(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot open the run's store"):
        Store(tmp_path / "run")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET fields = replace(fields, 'not today', 'gladly') WHERE event = 'Settled'",
        "DELETE FROM audit WHERE number = 3",
        "DELETE FROM audit WHERE number = (SELECT max(number) FROM audit)",
        "UPDATE rounds SET record = replace(record, '\"examples\":3', '\"examples\":4') WHERE round = 1",
        "UPDATE rounds SET record = replace(record, 'ffff', '0000') WHERE round = 1",
        "UPDATE rounds SET record = NULL WHERE round = 1",
        "UPDATE rounds SET opened = replace(opened, '\"b\"', '\"x\"') WHERE round = 1",
        "UPDATE rounds SET extended = '[]' WHERE round = 2",
        "DELETE FROM rounds WHERE round = 2",
        'INSERT INTO rounds (round, opened) VALUES (3, \'{"round":3,"cohort":[],"wanted":0,"needed":0}\')',
        "UPDATE parts SET outcome = 'accepted' WHERE node = 'b'",
        "UPDATE parts SET reason = 'lazy' WHERE node = 'b'",
        "UPDATE parts SET offer = zeroblob(10) WHERE node = 'a'",
        "UPDATE parts SET offer = NULL WHERE node = 'a'",
        "DELETE FROM parts WHERE node = 'a'",
        "INSERT INTO parts VALUES (1, 'x', 'accepted', '', NULL)",
        "UPDATE evaluations SET metrics = replace(metrics, '1.0', '3.0')",
        "DELETE FROM evaluations",
        "INSERT INTO evaluations VALUES (1, 'x', '{}')",
        "DELETE FROM handed_over",
        "INSERT INTO handed_over VALUES ('b')",
        "UPDATE run SET info = replace(info, '\"seed\":7', '\"seed\":8')",
        "UPDATE run SET info = replace(info, 'finished', 'aborted')",
        "DELETE FROM run",
    ],
)
def test_every_edit_is_found(store, statement):
    filled(store).verify()
    edit(store, statement)
    with pytest.raises(VerificationFailed):
        store.verify()


def test_old_checkpoints_are_dropped(store):
    for round in range(5):
        store.checkpoint(round).touch()
    store.drop_checkpoints(before=3)
    assert sorted(path.name for path in store.checkpoints.iterdir()) == [
        "round-000003.safetensors",
        "round-000004.safetensors",
    ]
