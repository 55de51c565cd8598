"""What a simulation says would have been sent is what a network does send, to the byte."""

from pathlib import Path

import pytest

import koinon as kn
from koinon.durable.store import Store
from koinon.run.app import load_app
from koinon.run.result import Run
from koinon.run.up import Trial

APPS = Path(__file__).parent / "apps"


def traffic(run):
    return [{str(p.client): (p.bytes_up, p.bytes_down) for p in record.participants} for record in run.history]


@pytest.mark.parametrize("name", ["small", "changes", "secret"])
def test_simulated_bytes_are_those_that_cross_the_sockets(name, tmp_path):
    path = APPS / f"{name}.py"
    app = load_app(str(path))
    population = app.clients(3)
    names = {str(client): f"population:{place}/3" for place, client in enumerate(population.ids)}
    with Trial(str(path), names, tmp_path / "runs" / "real", ["--min-nodes", "3", "--seed", "0"]) as trial:
        trial.start_server()
        for node in names:
            trial.start_node(node)
        assert trial.wait() == 0
    store = Store(tmp_path / "runs" / "real")
    real = Run.read(store, app.federation.learner.layout)
    store.close()
    simulated = kn.simulate(app.federation, population, runs=tmp_path / "simulated")
    assert real.digest == simulated.digest
    assert traffic(real) == traffic(simulated)
