"""q-FedAvg: its defining equations, a narrower spread of losses and accuracies, and what it refuses."""

import functools
import statistics

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.run.explain import explain
from koinon.view.progress import Quiet
from tests.strategy.lines import COPIES, EVERYONE, RATE, cohorts, federation, first, gradient, loss, simulated, trained

EPOCHS = 2


def by_the_paper(cohorts, q):
    """Algorithm 2 in float64, with L = 1 / the learning rate."""
    w, lipschitz = first(), 1 / RATE
    for cohort in cohorts:
        deltas, curvatures = [], []
        for client in cohort:
            own = w.clone()
            for _ in range(EPOCHS * COPIES[client] // 4):
                own = own - RATE * gradient(own, client)
            value, step = loss(w, client), lipschitz * (w - own)
            deltas.append(value**q * step)
            curvatures.append(q * value ** (q - 1) * float(step @ step) + lipschitz * value**q)
        w = w - torch.stack(deltas).sum(0) / sum(curvatures)
    return w


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
def test_it_is_algorithm_2_with_a_sampled_cohort(tmp_path, q):
    run = simulated(federation(kn.qfedavg(q, sample=kn.Uniform(4)), 5, EPOCHS), tmp_path)
    drawn = cohorts(run)
    assert len({tuple(cohort) for cohort in drawn}) > 1
    torch.testing.assert_close(trained(run), by_the_paper(drawn, q), rtol=5e-6, atol=5e-6)
    assert run.vector[4] == 0


def test_without_fairness_it_is_fedavg_with_an_equal_say(tmp_path):
    runs = [simulated(federation(strategy), tmp_path) for strategy in (kn.qfedavg(0.0), kn.fedavg(stages=()))]
    torch.testing.assert_close(trained(runs[0]), trained(runs[1]), rtol=1e-6, atol=1e-6)


def test_losses_are_spread_less_and_the_worst_is_better(tmp_path):
    losses = []
    for q in (0.0, 1.0):
        model = trained(simulated(federation(kn.qfedavg(q), 60, 1, batch=20), tmp_path))
        losses.append([loss(model, client) for client in EVERYONE])
    before, after = losses
    assert statistics.pvariance(after) < 0.8 * statistics.pvariance(before)
    assert max(after) < 0.8 * max(before)


def flipped(client):
    """Nine clients of one mind, and a tenth that says the opposite where a feature is large."""
    rng = torch.Generator().manual_seed(client)
    inputs = torch.randn(200, 2, generator=rng)
    ruled = inputs[:, 0] > 0
    return kn.Samples(inputs, torch.where(inputs[:, 1] > 0.3, ~ruled, ruled).long() if client == 9 else ruled.long())


def test_accuracies_of_clients_are_spread_less(tmp_path):
    def make():
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))

    spread = []
    for q in (0.0, 3.0):
        sgd = functools.partial(torch.optim.SGD, lr=0.5)
        learner = kn.TorchLearner(make, nn.CrossEntropyLoss(), sgd, batch_size=50, metrics=(kn.Accuracy(),))
        fair = kn.Federation(learner, kn.qfedavg(q), 60, kn.Evaluation(federated=False))
        model = kn.simulate(fair, kn.Population.of(flipped, size=10), runs=tmp_path, progress=Quiet()).vector[:-1]
        found = [learner.evaluate(model, flipped(client))["accuracy"].value for client in range(10)]
        spread.append(statistics.pvariance(found))
    assert spread[1] < 0.6 * spread[0], spread


def test_the_runtimes_agree(tmp_path):
    one, two = (simulated(federation(kn.qfedavg()), tmp_path, workers=count) for count in (1, 2))
    assert one.digest == two.digest
    hidden = simulated(federation(kn.qfedavg(secure=kn.SecureSum(clip=100.0, bits=24))), tmp_path)
    torch.testing.assert_close(trained(hidden), trained(one), rtol=1e-3, atol=1e-3)


def test_explain_counts_the_number_beside_the_update():
    fair, plain = (explain(federation(strategy)) for strategy in (kn.qfedavg(), kn.fedavg()))
    assert (fair.bytes_up, fair.bytes_down) == (plain.bytes_up + 4, plain.bytes_down + 4)
    assert "beside it its curvature" in dict(fair.learns)["the server"]


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"q": -1.0}, "finite q >= 0"),
        ({"stages": (kn.Clip(1.0),)}, "Clip would change the step's curvature"),
        ({"stages": (kn.Momentum(0.9),)}, "Momentum would change the step's curvature"),
        ({"codec": kn.TopK(0.1)}, "would lose the step's curvature"),
        ({"reducer": kn.Median()}, "leave reducer= out"),
    ],
)
def test_what_cannot_work_is_refused(arguments, cure):
    with pytest.raises(kn.AdmissionError, match=cure):
        kn.qfedavg(**arguments)


def test_a_client_without_any_loss_does_not_break_the_round(tmp_path):
    perfect = nn.Linear(1, 1)
    with torch.no_grad():
        perfect.weight.fill_(2.0)
        perfect.bias.zero_()
    learner = kn.TorchLearner(perfect, nn.MSELoss())
    data = kn.Population.of([kn.Samples(torch.ones(4, 1), torch.full((4, 1), 2.0))] * 2)
    for q in (0.0, 0.5, 2.0):
        run = kn.simulate(kn.Federation(learner, kn.qfedavg(q), 1), data, runs=tmp_path)
        assert run.vector.isfinite().all()
