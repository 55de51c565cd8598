"""SIGKILL of nodes and server whose memories decide the next round: the same bytes as in a simulation, in every round."""

import pytest

import koinon as kn
from koinon.cli.options import load
from koinon.durable.journal import Journal
from koinon.durable.store import Store
from koinon.view.progress import Quiet

DEATHS = {"1": ["node mid training", "mid checkpoint"], "server": ["server between rounds"]}


def kept(run):
    """What node 1 remembers after the last round."""
    journal = Journal(run.trial.folder / "nodes" / "1" / run.trial.folder.name)
    memory = journal.state(before=4)
    journal.close()
    return memory


@pytest.mark.parametrize(("name", "memory"), [("dynamic", "local.gradient"), ("controlled", "learner.control")])
def test_what_a_client_remembers_survives(drill, app, name, memory):
    run = drill(app(name), DEATHS)
    assert len(run.died) == 3
    assert kept(run)[memory].shape == (600_000,) and kept(run)[memory].any()


def test_layers_of_a_clients_own_survive_and_judge_as_in_a_simulation(drill, app, tmp_path):
    run, loaded = drill(app("personal"), DEATHS), load(app("personal"))
    assert kept(run)["learner.own"].shape == (1803,)
    alone = kn.simulate(loaded.federation, loaded.population(2), seed=0, runs=tmp_path / "alone", progress=Quiet())
    store = Store(run.trial.folder)
    assert [record.by_client for record in store.history()] == [record.by_client for record in alone.history]
    store.close()
    without = loaded.federation.learner.evaluate(alone.vector, loaded.population(2)["1"].test)
    assert alone.history[-1].by_client["1"]["loss"] != without["loss"].value
