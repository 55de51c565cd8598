"""SIGKILL of nodes whose codec remembers: the same bytes as in a simulation, in every round, and true counts of them."""

from koinon.durable.journal import Journal
from koinon.durable.store import Store

DEATHS = {"1": ["node mid training", "mid checkpoint"]}


def test_what_was_left_out_survives_and_is_counted_once(drill, app):
    run = drill(app("packed"), DEATHS)
    assert len(run.died) == 2
    journal = Journal(run.trial.folder / "nodes" / "1" / run.trial.folder.name)
    memory = journal.state(before=4)
    journal.close()
    assert memory["codec.left"].shape == (600_000,) and memory["codec.left"].any()
    store = Store(run.trial.folder)
    for record in store.history():
        offered = {part.node: part.offer.update.size for part in store.settled(record.round)}
        for part in record.participants:
            assert 0.6 * 600_000 < offered[part.client] < 1.4 * 600_000, "a byte for each of 60 %, and their places"
    store.close()
