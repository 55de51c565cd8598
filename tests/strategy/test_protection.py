"""What noise needs of a definition: every row is refused, or corrected, when the federation is built."""

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.privacy.events import Gaussian, PoissonSampled

QUIET = kn.Evaluation(federated=False)
NOISE = kn.GaussianNoise(1.0, cohort=10)


class Median:
    """A rule that is no sum."""

    def admit(self, spec):
        pass

    def reduce(self, rows):
        return torch.zeros(rows.length)


class ByLoss:
    """A stranger's sampling."""

    def sample(self, candidates, round, rng, sizes=None):
        return list(candidates)

    def probability(self, population):
        return None


def federation(*stages, model=None, evaluation=QUIET, budget=None, **strategy):
    learner = kn.TorchLearner(model or nn.Linear(2, 1), loss=nn.MSELoss())
    return kn.Federation(learner, kn.fedavg(stages=stages, **strategy), 10, evaluation, budget)


REFUSED = {
    "noise before the clip": (lambda: federation(NOISE, kn.Clip(1.0)), r"put Clip\(norm\) before it"),
    "noise without a clip": (lambda: federation(NOISE), r"put Clip\(norm\) before it"),
    "Laplace noise with an L2 clip": (lambda: federation(kn.Clip(1.0), kn.LaplaceNoise(1.0, 10)), "put ClipL1"),
    "a client's noise without a clip": (lambda: federation(kn.Local(NOISE)), r"put Clip\(norm\) before it"),
    "a stage after the server's noise": (lambda: federation(kn.Clip(1.0), NOISE, kn.Clip(2.0)), "put the noise last"),
    "weights without a bound": (lambda: federation(kn.Weight(), kn.Clip(1.0), NOISE), r"Weight\(at_most=\.\.\.\)"),
    "weights after the noise": (lambda: federation(kn.Clip(1.0), NOISE, kn.Weight(5)), "put the noise last"),
    "weights beside a client's noise": (
        lambda: federation(kn.Weight(5), kn.Clip(1.0), kn.Local(NOISE)),
        "drop Weight",
    ),
    "weights after a client's noise": (
        lambda: federation(kn.Clip(1.0), kn.Local(NOISE), kn.Weight(5)),
        "drop Weight",
    ),
    "a client's noise twice": (
        lambda: federation(kn.Clip(1.0), kn.Local(NOISE), kn.Clip(1.0), kn.Local(NOISE)),
        "keep one Local",
    ),
    "dividing by the actual number": (
        lambda: federation(kn.Clip(1.0), kn.GaussianNoise(1.0), sample=kn.Poisson(0.1)),
        r"cohort=updates expected in a round",
    ),
    "a rule that is no sum": (lambda: federation(kn.Clip(1.0), NOISE, reducer=Median()), r"reducer=Mean\(\)"),
    "sampling by what clients hold": (
        lambda: federation(kn.Clip(1.0), NOISE, sample=kn.Weighted(3)),
        r"sample by Poisson\(rate\)",
    ),
    "sampling that nobody knows": (
        lambda: federation(kn.Clip(1.0), NOISE, sample=ByLoss()),
        r"sample by Poisson\(rate\)",
    ),
    "BatchNorm": (
        lambda: federation(kn.Clip(1.0), NOISE, model=nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))),
        "use GroupNorm",
    ),
    "raw metrics beside the noise": (
        lambda: federation(kn.Clip(1.0), NOISE, evaluation=kn.Evaluation()),
        r"Evaluation\(federated=False",
    ),
    "a budget without noise": (lambda: federation(budget=kn.Budget(1.0, 1e-5)), "add GaussianNoise"),
    "a budget that one round exceeds": (
        lambda: federation(kn.Clip(1.0), NOISE, budget=kn.Budget(0.1, 1e-5)),
        "kn.calibrate",
    ),
    "noise beyond what floats hold": (lambda: federation(kn.Clip(1e25), NOISE), "out of float32"),
    "no noise at all": (lambda: kn.GaussianNoise(0.0), "positive finite noise_multiplier"),
    "no cohort at all": (lambda: kn.GaussianNoise(1.0, cohort=0), "positive finite cohort"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_noise_cannot_honour_is_refused_with_the_cure(row: str) -> None:
    build, cure = REFUSED[row]
    with pytest.raises(kn.AdmissionError, match=cure):
        build()


def test_poisson_sampling_amplifies_and_nothing_else_does() -> None:
    for sample in (kn.Everyone(), kn.Uniform(10), kn.RoundRobin(10)):
        (protection,) = federation(kn.Clip(1.0), NOISE, sample=sample).protections
        assert protection.event == Gaussian(1.0)
    (protection,) = federation(kn.Clip(1.0), NOISE, sample=kn.Poisson(0.1)).protections
    assert protection.event == PoissonSampled(0.1, Gaussian(1.0))


def test_a_fixed_number_of_clients_promises_only_that_one_may_be_replaced() -> None:
    fixed = federation(kn.Clip(1.0), NOISE, sample=kn.Uniform(10)).protections[0]
    everyone = federation(kn.Clip(1.0), NOISE).protections[0]
    assert (fixed.neighbours, everyone.neighbours) == ("replace-one", "add-remove")
    assert fixed.after(10, 1e-5).epsilon > everyone.after(10, 1e-5).epsilon


def test_what_is_told_is_the_total_of_all_rounds() -> None:
    strategy = {"sample": kn.Poisson(0.1)}
    (protection,) = federation(kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=10), **strategy).protections
    total = protection.after(100, 1e-3)
    assert f"{total.epsilon:.4f}" == "4.7844"
    assert str(total).endswith("at delta 0.001 per client (add-remove neighbours, Poisson sampling, PLD accounting)")


def test_a_budget_ends_the_run_before_the_round_that_would_exceed_it() -> None:
    budget = kn.Budget(3.0, 1e-3)
    made = federation(kn.Clip(1.0), kn.GaussianNoise(2.0, cohort=10), budget=budget)
    (protection,) = made.protections
    assert 0 < made.planned < made.rounds
    assert protection.after(made.planned, 1e-3).epsilon <= 3.0 < protection.after(made.planned + 1, 1e-3).epsilon
