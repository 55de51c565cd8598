"""Attacks: what liars send is what their papers say, and it does the harm that it is for."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

import koinon as kn
from benchmarks.byzfl import rules
from koinon.attack import attack
from koinon.attack.attack import Known
from koinon.core.rng import generator
from koinon.view.progress import Quiet

HONEST, LIARS, LENGTH = 12, 4, 200


def known(rule=kn.Mean(), seed: int = 0, round: int = 1) -> Known:
    rng = generator(seed, "known")
    honest = 1.0 + 0.5 * torch.randn(HONEST, LENGTH, generator=rng)
    own = 1.0 + 0.5 * torch.randn(LIARS, LENGTH, generator=rng)
    return Known(honest, own, rule, round, generator(seed, "lies"))


def test_alie_and_ipm_are_those_of_byzfl() -> None:
    theirs, seen = rules("attacks.attacks"), known()
    honest = seen.honest.double().numpy()
    for mine, other in (
        (kn.attack.ALIE(-1.5), theirs.ALittleIsEnough(tau=1.5)),
        (kn.attack.IPM(0.5), theirs.InnerProductManipulation(tau=0.5)),
    ):
        lies = mine.lies(seen)
        assert lies.shape == seen.own.shape
        expected = np.asarray(other(honest))
        assert np.abs(lies.numpy() - expected).max() < 1e-5 or "ALittle" in type(other).__name__
    # byzfl takes the deviation with n - 1, the paper with n.
    mean, deviation = honest.mean(0), honest.std(0)
    assert np.abs(kn.attack.ALIE(1.5).lies(seen).numpy() - (mean - 1.5 * deviation)).max() < 1e-5


def test_alie_goes_as_far_as_its_paper_allows() -> None:
    """n = 50 with 12 liars: the paper's example has z = 0.6 or so; supporters 14 of 38 honest."""
    assert kn.attack.ALIE._most(38, 12) == pytest.approx(0.336, abs=1e-3)
    assert kn.attack.ALIE._most(4, 1) >= 0


@pytest.mark.parametrize(("made", "worst"), [(kn.attack.MinMax(), np.max), (kn.attack.MinSum(), np.sum)])
def test_lies_stay_just_within_what_honest_updates_show(made, worst) -> None:
    seen = known()
    lie = made.lies(seen)[0].double().numpy()
    honest = seen.honest.double().numpy()
    between = np.square(honest[:, None] - honest[None]).sum(2)
    allowed = max(worst(row) for row in between)
    reached = worst(np.square(honest - lie).sum(1))
    assert 0.999 * allowed < reached <= allowed * (1 + 1e-5)


def test_who_mimics_sends_what_an_honest_client_sends() -> None:
    seen = known()
    seen.honest[7] += 5.0
    assert torch.equal(kn.attack.Mimic().lies(seen), seen.honest[7].expand(LIARS, LENGTH))


def test_a_line_search_finds_the_most_harm() -> None:
    seen = known(kn.TrimmedMean(LIARS))
    mean = seen.honest.mean(0)

    def harm(lies: torch.Tensor) -> float:
        return float((seen.rule(torch.cat((seen.honest, lies))) - mean).norm())

    for base in (kn.attack.ALIE(), kn.attack.IPM()):
        assert harm(kn.attack.LineSearch(base).lies(seen)) >= harm(base.lies(seen))
    adaptive = kn.attack.Adaptive(most=1.0)
    lies = adaptive.lies(seen)
    assert harm(lies) > 0
    assert (lies - mean).norm(dim=1).max() <= (seen.honest - mean).norm(dim=1).max() * (1 + 1e-5)
    assert harm(kn.attack.Adaptive(most=math.inf).lies(seen)) >= harm(lies)


def test_simple_lies() -> None:
    seen = known()
    assert torch.equal(kn.attack.SignFlip(2.0).lies(seen), -2 * seen.own)
    assert torch.equal(kn.attack.Scaled(3.0).lies(seen), 3 * seen.own)
    assert torch.allclose(kn.attack.Replacement().lies(seen), 4 * seen.own)
    noisy = kn.attack.Gaussian(10.0).lies(seen)
    assert torch.allclose(noisy.norm(dim=1), 10 * seen.own.norm(dim=1))
    assert abs(float(torch.corrcoef(torch.stack((noisy[0], seen.own[0])))[0, 1])) < 0.3
    assert not kn.attack.FreeRider().lies(seen).any()
    early, late = (kn.attack.FreeRider(0.5).lies(known(round=round)).norm(dim=1) for round in (1, 10))
    assert torch.allclose(early, 10 * late)
    twins = kn.attack.Sybils().lies(seen)
    assert not torch.equal(twins[0], twins[1]) and torch.allclose(twins[0], twins[1], atol=0.1)
    assert kn.attack.NotFinite().lies(seen)[:, 0].isnan().all()


def images(count: int = 40) -> kn.DataSet:
    inputs = torch.rand(count, 1, 8, 8, generator=generator(0, "images"))
    return kn.DataSet(kn.Samples(inputs, torch.arange(count) % 10))


def test_data_are_poisoned_and_the_owners_stay_as_they_are() -> None:
    data, rng = images(), generator(0, "poison")
    flipped = kn.attack.LabelFlip(10).poisoned(data, rng).train
    assert torch.equal(flipped.targets, 9 - data.train.targets)
    backdoor = kn.attack.Backdoor(target=3, share=0.5, size=2)
    marked = backdoor.poisoned(data, rng).train
    carries = (marked.inputs[..., -2:, -2:] == 1.0).flatten(1).all(1)
    assert 10 < int(carries.sum()) < 30 and (marked.targets[carries] == 3).all()
    assert torch.equal(marked.targets[~carries], data.train.targets[~carries])
    bright = kn.attack.SemanticBackdoor(lambda inputs, targets: inputs.flatten(1).mean(1) > 0.5, target=7)
    renamed = bright.poisoned(data, rng).train
    kind = data.train.inputs.flatten(1).mean(1) > 0.5
    assert (renamed.targets[kind] == 7).all() and torch.equal(renamed.targets[~kind], data.train.targets[~kind])
    assert torch.equal(data.train.targets, torch.arange(40) % 10)


def samples(client: int, count: int = 30) -> kn.Samples:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(client))
    return kn.Samples(inputs, (inputs.sum(1) > 0).long())


POPULATION = kn.Population.of(samples, size=10)


def run(tmp_path, reducer, engine=None, rounds: int = 12) -> kn.Run:
    sgd = functools.partial(torch.optim.SGD, lr=0.2)
    learner = kn.TorchLearner(lambda: nn.Linear(6, 2), nn.CrossEntropyLoss(), sgd, metrics=(kn.Accuracy(),))
    made = kn.Federation(learner, kn.fedavg(stages=(), reducer=reducer), rounds, kn.Evaluation(test=samples(99, 500)))
    more = {} if engine is None else {"engine": engine}
    return kn.simulate(made, POPULATION, runs=tmp_path, progress=Quiet(), **more)


HARMFUL = [
    kn.attack.SignFlip(10.0),
    kn.attack.Gaussian(100.0),
    kn.attack.IPM(6.0),
    kn.attack.LineSearch(kn.attack.IPM(2.0)),
]


@pytest.mark.parametrize("lie", HARMFUL, ids=lambda lie: type(lie).__name__)
def test_an_attack_breaks_the_mean_and_not_a_robust_rule(lie, tmp_path) -> None:
    clean = run(tmp_path, kn.Mean()).metrics["accuracy"]
    attacked = kn.Attacked(lie, liars=3)
    assert run(tmp_path, kn.Mean(), attacked).metrics["accuracy"] < clean - 0.15
    assert run(tmp_path, kn.NearestNeighborMixing(kn.TrimmedMean(3), 3), attacked).metrics["accuracy"] > clean - 0.08


def test_equal_seeds_give_equal_lies_and_the_honest_are_as_they_were(tmp_path) -> None:
    lie = kn.Attacked(kn.attack.Gaussian(), 3)
    assert run(tmp_path, kn.Median(), lie, 3).digest == run(tmp_path, kn.Median(), lie, 3).digest
    none = kn.Attacked(kn.attack.SignFlip(), 0)
    assert run(tmp_path, kn.Median(), none, 3).digest == run(tmp_path, kn.Median(), rounds=3).digest


def test_what_is_not_finite_never_counts(tmp_path) -> None:
    result = run(tmp_path, kn.Mean(), kn.Attacked(kn.attack.NotFinite(), 3), 2)
    outcomes = {part.client: part.outcome for part in result.history[0].participants}
    assert [outcomes[client] for client in ("7", "8", "9")] == ["failed"] * 3
    assert result.vector.isfinite().all()


def test_a_backdoor_is_learned_by_the_mean_and_kept_out(tmp_path) -> None:
    digits = kn.data.load("digits")
    door = kn.attack.Backdoor(target=0, share=0.5, size=2, value=16.0)
    marked = door.triggered(digits.test.inputs[digits.test.targets != 0])
    caught = kn.Samples(marked, torch.zeros(len(marked)).long())
    learner = kn.TorchLearner(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.01),
        metrics=(kn.Accuracy(),),
    )

    def success(reducer) -> float:
        made = kn.Federation(learner, kn.fedavg(stages=(), reducer=reducer), 10, kn.Evaluation(test=caught))
        lie = kn.Attacked(kn.attack.Replacement(door), 2)
        population = digits.split(kn.IID(), clients=10, seed=0)
        return kn.simulate(made, population, runs=tmp_path, progress=Quiet(), engine=lie).metrics["accuracy"]

    assert success(kn.Mean()) > 0.8
    assert success(kn.Median()) < 0.3


def test_everyone_cannot_lie() -> None:
    with pytest.raises(kn.AdmissionError, match="at least one must be honest"):
        kn.Attacked(attack.Attack(), 10)(None, POPULATION, 0)
    with pytest.raises(kn.AdmissionError, match="0 or more"):
        kn.Attacked(attack.Attack(), -1)
