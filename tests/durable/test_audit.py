"""The hash chain: every kind of edit is found."""

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import VerificationFailed
from koinon.durable import audit


def written(entries=5):
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.executescript(audit.SCHEMA)
    for number in range(entries):
        audit.append(database, "Settled", {"node": f"node-{number}", "round": number})
    return database


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(), st.dictionaries(st.text(), st.one_of(st.integers(), st.text())))))
def test_what_was_appended_verifies(entries):
    database = written(0)
    for event, fields in entries:
        audit.append(database, event, fields)
    assert audit.verify(database) == len(entries)
    database.close()


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("UPDATE audit SET fields = replace(fields, 'node-2', 'node-9') WHERE number = 3", "entry 3"),
        ("UPDATE audit SET event = 'Failed' WHERE number = 1", "entry 1"),
        ("UPDATE audit SET time = '2000-01-01T00:00:00.000+00:00' WHERE number = 5", "entry 5"),
        ("UPDATE audit SET hash = (SELECT hash FROM audit WHERE number = 1) WHERE number = 2", "entry 2"),
        ("DELETE FROM audit WHERE number = 2", "entry 2 is missing"),
        ("DELETE FROM audit WHERE number = 1", "entry 1 is missing"),
        ("DELETE FROM audit WHERE number > 3", "entries 4 to 5 are missing"),
        ("DELETE FROM audit", "entries 1 to 5 are missing"),
        ("DELETE FROM audit WHERE number = 2; UPDATE audit SET number = number - 1 WHERE number > 2", "entry 2"),
        ("INSERT INTO audit SELECT 6, time, event, fields, hash FROM audit WHERE number = 5", "entry 6"),
        ("UPDATE audit SET number = 9 WHERE number = 2; UPDATE audit SET number = 2 WHERE number = 3", "entry 2"),
    ],
)
def test_an_edit_is_found(edit, named):
    database = written()
    database.executescript(edit)
    with pytest.raises(VerificationFailed, match=named):
        audit.verify(database)
    database.close()
