"""SIGKILL of real processes at every named moment: the run ends with the same bits as if nothing had happened."""

import pytest

DEATHS = [
    ("server after join", "node after join"),
    ("server mid download", "node mid upload"),
    ("server mid upload", "node mid download"),
    ("server before acknowledgement", "node mid training"),
    ("server between rounds", "node before acknowledgement"),
]


@pytest.mark.parametrize(("server", "node"), DEATHS)
def test_a_server_and_a_node_killed_at_any_moment_go_on_where_they_were(drill, app, server, node):
    run = drill(app("bulky"), {"server": [server], "1": [node]})
    assert sorted(run.died) == [("1", node), ("server", server)]


def test_whoever_is_killed_while_writing_to_disk_writes_the_same_again(drill, app):
    # A server writes the initial model, then the one after each round; a node writes its update of each round.
    deaths = {"server": ["mid checkpoint"] * 3, "0": ["mid checkpoint"], "1": ["node between rounds"]}
    assert len(drill(app("bulky"), deaths).died) == 5
