"""FedNova: its defining equations, the optimum that it finds where steps are unequal, and what it refuses."""

import functools

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.descent import Descent
from koinon.run.explain import explain
from koinon.strategy.fednova import steps_worth
from tests.strategy.lines import (
    CLIENTS,
    COPIES,
    RATE,
    cohorts,
    federation,
    first,
    gradient,
    optimum,
    simulated,
    trained,
)

EPOCHS = 2


def by_the_paper(cohorts, momentum=0.0, mu=0.0):
    """Normalised directions and effective steps, with every step's weight a written out, in float64."""
    model = first()
    for cohort in cohorts:
        directions, effective = [], []
        for client in cohort:
            own, velocity, steps = model.clone(), torch.zeros(4).double(), EPOCHS * COPIES[client] // 4
            for _ in range(steps):
                velocity = momentum * velocity + gradient(own, client) + mu * (own - model)
                own = own - RATE * velocity
            if momentum:
                a = [(1 - momentum ** (steps - k)) / (1 - momentum) for k in range(steps)]
            else:
                a = [(1 - RATE * mu) ** (steps - 1 - k) for k in range(steps)]
            directions.append((own - model) / sum(a))
            effective.append(sum(a))
        shares = torch.tensor([COPIES[client] for client in cohort]).double()
        shares /= shares.sum()
        model = model + (shares @ torch.tensor(effective).double()) * (shares @ torch.stack(directions))
    return model


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.7, 0.0), (0.0, 2.0)])
def test_it_is_the_papers_update(tmp_path, momentum, mu):
    strategy = kn.fednova(mu, sample=kn.Uniform(4))
    run = simulated(federation(strategy, 5, EPOCHS, momentum=momentum), tmp_path)
    drawn = cohorts(run)
    assert len({tuple(cohort) for cohort in drawn}) > 1
    torch.testing.assert_close(trained(run), by_the_paper(drawn, momentum, mu), rtol=2e-6, atol=2e-6)
    assert run.vector[4] == 0


def test_what_steps_are_worth_is_the_papers_sum():
    rho, alpha, steps = 0.9, 0.05 * 3, 17
    with_momentum = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert steps_worth(steps, Descent(0.05, rho), 0.0) == pytest.approx(with_momentum, rel=1e-12)
    assert steps_worth(steps, Descent(0.05, 0.0), 3.0) == pytest.approx((1 - (1 - alpha) ** steps) / alpha, rel=1e-12)
    assert steps_worth(steps, Descent(0.05, 0.0), 0.0) == steps


def test_it_finds_the_optimum_of_all_data_where_fedavg_favours_who_steps_most(tmp_path):
    best, fast = optimum(COPIES), functools.partial(torch.optim.SGD, lr=10.0)
    apart = {}
    for recipe in (kn.fedavg, kn.fednova):  # short local steps, so that what is left is where the two are drawn to
        run = simulated(federation(recipe(server=fast), 120, 1, rate=0.005), tmp_path)
        apart[recipe.__name__] = float((trained(run) - best).norm())
    assert apart["fednova"] < 0.15 * apart["fedavg"], apart


def test_with_equal_steps_it_is_fedavg(tmp_path):
    equal = (8,) * CLIENTS
    nova, plain = (
        simulated(federation(strategy), tmp_path / strategy.name, copies=equal)
        for strategy in (kn.fednova(), kn.fedavg())
    )
    torch.testing.assert_close(trained(nova), trained(plain), rtol=1e-6, atol=1e-6)


def test_the_runtimes_agree(tmp_path):
    one, two = (simulated(federation(kn.fednova()), tmp_path / str(count), workers=count) for count in (1, 2))
    assert one.digest == two.digest
    secret = kn.fednova(stages=(kn.Weight(at_most=32),), secure=kn.SecureSum(clip=50.0, bits=24))
    hidden = simulated(federation(secret), tmp_path / "secret")
    torch.testing.assert_close(trained(hidden), trained(one), rtol=1e-3, atol=1e-3)


def test_running_statistics_are_averaged_and_not_normalised(tmp_path):
    def make():
        return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    nova, plain = (
        simulated(federation(strategy, 1, make=make), tmp_path / strategy.name)
        for strategy in (kn.fednova(), kn.fedavg())
    )
    torch.testing.assert_close(nova.model["0.running_mean"], plain.model["0.running_mean"])
    assert set(nova.model) == set(plain.model)


def test_the_steps_of_a_training_are_counted():
    for batch in (1, 2, 3, 7, 20, 30):
        learner = federation(kn.fedavg(), epochs=3, batch=batch).learner
        for count in range(1, 25):
            batches = list(learner._batches(count, torch.Generator()))
            assert learner.steps(count) == len(batches), (batch, count)


def test_explain_counts_the_number_beside_the_update():
    nova, plain = (explain(federation(strategy)) for strategy in (kn.fednova(), kn.fedavg()))
    assert (nova.bytes_up, nova.bytes_down) == (plain.bytes_up + 4, plain.bytes_down + 4)
    assert "beside it its steps" in dict(nova.learns)["the server"]


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"mu": -1.0}, "mu >= 0"),
        ({"stages": (kn.Clip(1.0),)}, "Clip would change the number of steps"),
        ({"stages": (kn.Momentum(0.9),)}, "Momentum would change the number of steps"),
        ({"codec": kn.TopK(0.1)}, "would lose the number of steps"),
        ({"codec": kn.Quantize(8)}, "would lose the number of steps"),
        ({"reducer": kn.Median(), "stages": ()}, "leave reducer= out"),
    ],
)
def test_what_cannot_work_is_refused(arguments, cure):
    with pytest.raises(kn.AdmissionError, match=cure):
        kn.fednova(**arguments)


def test_a_learner_whose_steps_are_worth_nobody_knows_what_is_refused():
    with pytest.raises(kn.AdmissionError, match="SGD"):
        kn.Federation(kn.TorchLearner(nn.Linear(3, 1), nn.MSELoss(), torch.optim.Adam), kn.fednova(), 1)
    with pytest.raises(kn.AdmissionError, match="lower one of them"):
        federation(kn.fednova(mu=30.0))
    private = kn.TorchLearner(nn.Linear(3, 1), nn.MSELoss(), dp=kn.DPSGD(1.0, 1.0, 0.5))
    with pytest.raises(kn.AdmissionError, match="leave dp= out"):
        kn.Federation(private, kn.fednova(), 1, kn.Evaluation(federated=False))
