"""Ditto: its defining equations, clients with labels of their own, what stays on the node, and what it refuses."""

import functools

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.durable import checkpoint
from koinon.run.explain import explain
from koinon.view.progress import Quiet
from tests.strategy.lines import CLIENTS, COPIES, RATE, cohorts, federation, first, gradient, simulated, trained

LAM = 0.8


def by_the_paper(cohorts):
    """Algorithm 1 in float64: the model of all and every client's own."""
    w, own = first(), {}
    for cohort in cohorts:
        moved = []
        for client in cohort:
            u, v = w.clone(), own.get(client, w)
            for _ in range(COPIES[client] // 4):
                u = u - RATE * gradient(u, client)
                v = v - RATE * (gradient(v, client) + LAM * (v - w))
            own[client] = v
            moved.append(u - w)
        shares = torch.tensor([COPIES[client] for client in cohort]).double()
        w = w + (shares / shares.sum()) @ torch.stack(moved)
    return w, own


def kept(run):
    server = checkpoint.load(run.path / "checkpoints" / f"round-{len(run.history):06d}.safetensors")
    return {int(name.partition("/")[0]): own for name, own in server.clients.items() if name.endswith("learner.model")}


def test_it_is_algorithm_1_with_a_sampled_cohort(tmp_path):
    run = simulated(federation(kn.ditto(LAM, sample=kn.Uniform(4)), 5, 1), tmp_path)
    w, own = by_the_paper(cohorts(run))
    torch.testing.assert_close(trained(run), w, rtol=5e-6, atol=5e-6)
    found = kept(run)
    assert found.keys() == own.keys()
    for client in own:
        torch.testing.assert_close(found[client].double(), own[client], rtol=5e-6, atol=5e-6)


def test_the_model_of_all_and_what_is_sent_are_fedavgs(tmp_path):
    runs = [simulated(federation(strategy), tmp_path) for strategy in (kn.ditto(LAM), kn.fedavg())]
    assert runs[0].digest == runs[1].digest
    mine, plain = (explain(federation(strategy)) for strategy in (kn.ditto(LAM), kn.fedavg()))
    assert (mine.bytes_up, mine.bytes_down) == (plain.bytes_up, plain.bytes_down)
    assert "16 bytes that its learner keeps" in dict(mine.learns)["a node's own disk"]


def permuted(client):
    """What a client calls 0 is 1 to every second other."""
    rng = torch.Generator().manual_seed(client)
    inputs = torch.randn(120, 4, generator=rng)
    targets = ((inputs.sum(1) > 0) ^ bool(client % 2)).long()
    return kn.DataSet(kn.Samples(inputs[:60], targets[:60]), kn.Samples(inputs[60:], targets[60:]))


def judged(strategy, folder):
    """Accuracy of what clients make of the last model, on data that they did not train on."""
    sgd = functools.partial(torch.optim.SGD, lr=0.3)
    learner = kn.TorchLearner(nn.Linear(4, 2), nn.CrossEntropyLoss(), sgd, batch_size=20, metrics=(kn.Accuracy(),))
    population = kn.Population.of(permuted, size=4)
    run = kn.simulate(kn.Federation(learner, strategy, 8), population, runs=folder, progress=Quiet())
    return run.metrics["accuracy"]


def test_clients_with_labels_of_their_own_fare_better_with_models_of_their_own(tmp_path):
    mine, alike = judged(kn.ditto(0.1), tmp_path), judged(kn.fedavg(), tmp_path)
    assert mine > 0.85 and alike < 0.6, (mine, alike)


def test_with_a_strong_pull_the_own_model_is_the_model_of_all(tmp_path):
    run = simulated(federation(kn.ditto(15.0), 60, 1), tmp_path)
    apart = max(float((own - run.vector).norm()) for own in kept(run).values())
    loose = simulated(federation(kn.ditto(0.01), 60, 1), tmp_path)
    assert apart < 0.3 * max(float((own - loose.vector).norm()) for own in kept(loose).values())


def test_workers_and_a_resumed_run_come_to_the_same(tmp_path):
    one, two = (simulated(federation(kn.ditto(), 4), tmp_path, workers=count) for count in (1, 2))
    assert one.digest == two.digest
    assert all(kept(one)[client].equal(kept(two)[client]) for client in range(CLIENTS))
    begun = simulated(federation(kn.ditto(), 4), tmp_path, resume=one.id)
    assert begun.digest == one.digest


@pytest.mark.parametrize("lam", [-1.0, float("inf"), float("nan")])
def test_a_strength_that_cannot_be_is_refused(lam):
    with pytest.raises(kn.AdmissionError, match="finite lam >= 0"):
        kn.ditto(lam)


def test_updates_may_be_noisy_since_the_own_model_is_not_sent():
    noisy = kn.ditto(sample=kn.Poisson(0.5), stages=(kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=3)))
    assert federation(noisy).protections
