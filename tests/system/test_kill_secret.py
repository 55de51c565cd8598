"""SIGKILL of processes while updates are added up secretly: the sum is that of everybody, or the round is tried again."""

import pytest

from koinon.durable.store import Store

DEATHS = [
    ("server after join", "node after join"),
    ("server mid upload", "node mid training"),
    ("server before acknowledgement", "node mid upload"),
    ("server between rounds", "mid checkpoint"),
]


@pytest.mark.parametrize(("server", "node"), DEATHS)
def test_a_server_and_a_node_killed_at_any_moment_add_up_the_same(survived, undisturbed, app, server, node):
    drill = survived(app("secret"), {"server": [server], "1": [node]}, clients=3)
    assert sorted(drill.died) == [("1", node), ("server", server)]
    store = Store(drill.trial.folder)
    store.verify()
    history = store.history()
    assert [record.digest for record in history] == undisturbed(app("secret"), 3).digests
    for record in history:
        assert [part.outcome for part in record.participants] == ["accepted"] * 3
        assert {part.weight for part in record.participants} == {0.0}, "of one alone nothing is known"
    store.close()
    for node in drill.trial.nodes:
        assert not list((drill.trial.folder / "nodes" / node).rglob("update-*")), "nothing is left that was in a sum"
        assert not list((drill.trial.folder / "nodes" / node).rglob("masked"))
