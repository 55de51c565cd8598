"""SIGKILL of nodes and server whose memories decide the next round: the same bytes as in a simulation, in every round."""

import pytest

from koinon.durable.journal import Journal

DEATHS = {"1": ["node mid training", "mid checkpoint"], "server": ["server between rounds"]}


@pytest.mark.parametrize(("name", "kept"), [("dynamic", "local.gradient"), ("controlled", "learner.control")])
def test_what_a_client_remembers_survives(drill, app, name, kept):
    run = drill(app(name), DEATHS)
    assert len(run.died) == 3
    journal = Journal(run.trial.folder / "nodes" / "1" / run.trial.folder.name)
    memory = journal.state(before=4)
    journal.close()
    assert memory[kept].shape == (600_000,) and memory[kept].any()
