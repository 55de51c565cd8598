"""AFL: its defining equations, the worst client's loss, and what it refuses."""

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.aggregate.reducer import Matrix, Round
from koinon.durable import checkpoint
from koinon.run.explain import explain
from koinon.strategy.afl import WorstMixture, onto_simplex
from koinon.strategy.strategy import Strategy
from tests.strategy.lines import (
    CLIENTS,
    COPIES,
    EVERYONE,
    RATE,
    cohorts,
    federation,
    first,
    gradient,
    loss,
    simulated,
    trained,
)

RISE = 0.2


def nearest(point, total):
    """The projection onto the simplex by bisection for what is taken from every element."""
    low, high = float(point.min()) - total, float(point.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (point - middle).clamp(min=0).sum() > total else (low, middle)
    return (point - low).clamp(min=0)


def by_the_paper(cohorts):
    """Algorithm 1 in float64; of those who are drawn, the shares change among themselves, and who is new has an equal one."""
    w, mixture, known = first(), torch.zeros(CLIENTS).double(), set()
    for cohort in cohorts:
        new = [client for client in cohort if client not in known]
        mixture *= len(known) / (len(known) + len(new))
        known |= set(cohort)
        mixture[new] = 1 / len(known)
        moved, losses = [], torch.tensor([loss(w, client) for client in cohort]).double()
        for client in cohort:
            own = w.clone()
            for _ in range(COPIES[client] // 4):
                own = own - RATE * gradient(own, client)
            moved.append(own - w)
        shares = mixture[cohort]
        w = w + (shares / shares.sum()) @ torch.stack(moved)
        mixture[cohort] = nearest(shares + RISE * losses, float(shares.sum()))
    return w, mixture


def shares(run):
    server = checkpoint.load(run.path / "checkpoints" / f"round-{len(run.history):06d}.safetensors")
    return torch.stack([server.reducer[str(client)] for client in EVERYONE])


def test_it_is_algorithm_1(tmp_path):
    run = simulated(federation(kn.afl(RISE), 8, 1), tmp_path)
    w, mixture = by_the_paper(cohorts(run))
    torch.testing.assert_close(trained(run), w, rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(shares(run), mixture, rtol=5e-6, atol=5e-6)
    assert (mixture == 0).any() and run.vector[4] == 0


def test_of_a_sampled_cohort_the_shares_change_among_themselves(tmp_path):
    run = simulated(federation(kn.afl(RISE, sample=kn.Uniform(3)), 8, 1), tmp_path)
    drawn = cohorts(run)
    assert set().union(*drawn) == set(EVERYONE) and len({tuple(cohort) for cohort in drawn}) > 1
    w, mixture = by_the_paper(drawn)
    torch.testing.assert_close(trained(run), w, rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(shares(run), mixture, rtol=5e-6, atol=5e-6)
    assert float(mixture.sum()) == pytest.approx(1.0)


def test_who_fares_worst_fares_better_than_with_fedavg(tmp_path):
    worst = {}
    for strategy in (kn.fedavg(), kn.afl(RISE)):
        model = trained(simulated(federation(strategy, 100, 1, batch=20), tmp_path))
        worst[strategy.name] = max(loss(model, client) for client in EVERYONE)
    assert worst["afl"] < 0.6 * worst["fedavg"], worst


@pytest.mark.parametrize("total", [1.0, 0.3])
def test_the_projection_is_the_nearest_point(total):
    rng = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 50):
        point = torch.randn(count, generator=rng, dtype=torch.float64)
        torch.testing.assert_close(onto_simplex(point, total), nearest(point, total), rtol=1e-9, atol=1e-9)


def test_a_round_of_none_who_counts_moves_nothing():
    nothing, rows = torch.tensor(0.0, dtype=torch.float64), Matrix(torch.ones(2, 5), [1.0, 1.0])
    memory = {"1": nothing, "2": nothing, "3": nothing + 1}
    after, total = WorstMixture(RISE).reduce_round(memory, rows, Round(5, ("1", "2"), torch.Generator()))
    assert after == memory and not total.any()


def test_workers_come_to_the_same(tmp_path):
    one, two = (simulated(federation(kn.afl()), tmp_path, workers=count) for count in (1, 2))
    assert one.digest == two.digest


def test_explain_tells_that_the_server_learns_losses():
    agnostic, plain = (explain(federation(strategy)) for strategy in (kn.afl(), kn.fedavg()))
    assert agnostic.bytes_up == plain.bytes_up + 4
    assert "beside it its loss" in dict(agnostic.learns)["the server"]


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"rate": 0.0}, "positive finite rate"),
        ({"stages": (kn.Weight(),)}, "leave Weight out"),
        ({"stages": (kn.Clip(1.0),)}, "Clip would change the loss"),
        ({"stages": (kn.Momentum(0.9),)}, "Momentum would change the loss"),
        ({"codec": kn.Quantize(8)}, "would lose the loss"),
    ],
)
def test_what_cannot_work_is_refused(arguments, cure):
    with pytest.raises(kn.AdmissionError, match=cure):
        kn.afl(**arguments)


def test_its_parts_are_refused_one_without_the_other_and_where_losses_are_hidden():
    made = kn.afl()
    with pytest.raises(kn.AdmissionError, match="qfedavg"):
        Strategy("hidden", stages=made.stages, reducer=made.reducer, method=made.method, secure=kn.SecureSum(clip=1.0))
    with pytest.raises(kn.AdmissionError, match="leave reducer= out"):
        Strategy("apart", stages=made.stages, method=made.method)


def test_a_learner_that_measures_no_loss_fails_with_the_reason(tmp_path):
    class Silent(kn.TorchLearner):
        def evaluate(self, model, data):
            return {}

    learner = Silent(nn.Linear(3, 1), nn.MSELoss())
    with pytest.raises(kn.ClientFailed, match="no finite loss"):
        simulated(kn.Federation(learner, kn.afl(), 1), tmp_path)
