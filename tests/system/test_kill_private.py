"""SIGKILL of processes that draw noise: none is drawn twice, and what was spent is never less than what left."""

import pytest

from koinon.durable import checkpoint
from koinon.durable.ledger import Ledger
from koinon.durable.secret import noise_of
from koinon.durable.store import Store
from koinon.run.app import load_app
from koinon.run.work import EncodedRows, advance, first_state, held, shared, train
from koinon.update.codec import InMemory

DEATHS = [
    ("server mid download", "node after join"),
    ("server mid upload", "node mid training"),
    ("server before acknowledgement", "node mid upload"),
    ("server between rounds", "node before acknowledgement"),
    ("mid checkpoint", "mid checkpoint"),
]


@pytest.mark.parametrize(("server", "node"), DEATHS)
def test_whoever_is_killed_draws_the_same_noise_again_and_charges_it_once(survived, app, server, node):
    drill = survived(app("guarded"), {"server": [server], "1": [node]})
    assert sorted(drill.died) == [("1", node), ("server", server)]
    trial, federation = drill.trial, load_app(app("guarded")).federation
    store = Store(trial.folder)
    store.verify()
    history = store.history()
    assert [record.digest for record in history] == replayed(trial, federation)
    for record in history:
        assert [release.place for release in record.releases] == ["client", "server"]
    for name in trial.nodes:
        ledger = Ledger(trial.folder / "nodes" / name)
        charges = [(round, release.place, release.times) for _, round, release in ledger.charges()]
        assert charges == [(round, place, 1) for round in (1, 2, 3) for place in ("client", "server")]
        assert ledger.verify() == len(charges)
        ledger.close()
    store.close()


def replayed(trial, federation):
    """The digests of every round, drawn once more and without a death from the secrets that the processes have left."""
    strategy, clients = federation.strategy, load_app(trial.app).clients(len(trial.nodes))
    homes = {name: trial.folder / "nodes" / name / trial.folder.name for name in trial.nodes}
    state, digests = first_state(federation, 0), []
    for round in range(1, federation.planned + 1):
        told = strategy.stages.tell(state.stages)
        sent = [
            train(federation, 0, noise_of(home), round, name, state.model, clients[name], {}, told)
            for name, home in homes.items()
        ]
        encoded, weights = [InMemory(local.encoded) for local in sent], [local.weight for local in sent]
        rows = held(federation, EncodedRows(strategy.codec, encoded, weights, shared(federation, 0, round)))
        total = strategy.reducer.reduce(rows)
        state, _ = advance(federation, 0, noise_of(trial.folder), round, state, total, rows.weights)
        digests.append(checkpoint.digest(state.model))
    return digests
