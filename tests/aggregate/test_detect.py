"""Suspicion adds up, nobody is out at once, who behaves comes back, and what is left is reduced by the rule."""

import math

import pytest
import torch

import koinon as kn
from koinon.aggregate.detect import FEATURES, estimate, features, scores
from koinon.aggregate.geometry import geometry
from koinon.aggregate.reducer import Matrix, Round
from koinon.core.rng import generator

CLIENTS = tuple(str(number) for number in range(20))


def honest(seed: int, count: int = 20, length: int = 500) -> torch.Tensor:
    return 1.0 + 0.5 * torch.randn(count, length, generator=generator(seed, "honest"))


def rounds(rule: kn.Quarantine, lies, count: int) -> list[dict]:
    """Reports of so many rounds in which the last clients send what `lies` makes of a round's number and updates."""
    memory, reports = rule.start(500), []
    for number in range(1, count + 1):
        updates = lies(number, honest(number))
        known = Round(number, CLIENTS, generator(number, "t"))
        memory, _ = rule.reduce_round(memory, Matrix(updates, [1.0] * 20), known)
        reports.append(rule.report(memory))
    return reports


def turned(number: int, updates: torch.Tensor) -> torch.Tensor:
    return torch.cat((updates[:16], -updates[16:]))


LIES = {
    "turned": turned,
    "long": lambda number, updates: torch.cat((updates[:16], 5 * updates[16:])),
    "together": lambda number, updates: torch.cat((updates[:16], updates[:1] + 0.01 * updates[16:])),
    "nothing": lambda number, updates: torch.cat((updates[:16], torch.zeros(4, 500))),
}


@pytest.mark.parametrize("name", LIES)
def test_who_is_unlike_the_others_has_the_highest_scores(name) -> None:
    found = scores(geometry(Matrix(LIES[name](1, honest(1)), [1.0] * 20)))
    caught = found[16:] if name != "together" else found[[0, 16, 17, 18, 19]]
    rest = found[:16] if name != "together" else found[1:16]
    assert caught.min() > 2 * rest.max()
    assert features(geometry(Matrix(honest(2), [1.0] * 20))).shape == (20, len(FEATURES))


def test_nobody_is_out_after_one_round_and_liars_are_soon() -> None:
    reports = rounds(kn.Quarantine(kn.Mean()), turned, 5)
    assert not any(each["left_out"] for each in reports[0].values())
    out = {client for client, each in reports[-1].items() if each["left_out"]}
    assert out == {"16", "17", "18", "19"}
    assert reports[1]["19"]["suspicion"] > reports[0]["19"]["suspicion"] > 0


def test_who_behaves_comes_back() -> None:
    reports = rounds(kn.Quarantine(kn.Mean()), lambda n, updates: turned(n, updates) if n <= 4 else updates, 16)
    assert reports[3]["17"]["left_out"] and not reports[-1]["17"]["left_out"]
    assert reports[-1]["17"]["suspicion"] < 4.0


def test_without_liars_nobody_is_left_out() -> None:
    reports = rounds(kn.Quarantine(kn.Mean()), lambda number, updates: updates, 15)
    assert not any(each["left_out"] for report in reports for each in report.values())
    assert estimate(reports[-1])[0] < 0.5


def test_the_rule_sees_only_those_that_are_left_and_as_many_as_it_needs() -> None:
    rule = kn.Quarantine(kn.TrimmedMean(2))
    memory, total = rule.start(500), None
    for number in range(1, 5):
        updates = turned(number, honest(number))
        memory, total = rule.reduce_round(
            memory, Matrix(updates, [1.0] * 20), Round(number, CLIENTS, generator(0, "t"))
        )
    assert torch.allclose(total, kn.TrimmedMean(2)(updates[:16]), atol=1e-6)
    few = kn.Quarantine(kn.TrimmedMean(9))
    assert few.least == 19
    memory = few.start(500)
    for number in range(1, 5):
        memory, total = few.reduce_round(memory, Matrix(updates, [1.0] * 20), Round(number, CLIENTS, generator(0, "t")))
    assert sum(each["left_out"] for each in few.report(memory).values()) == 1, "one can be spared of 20"


def test_the_number_of_liars_is_estimated_with_its_deviation() -> None:
    reports = rounds(kn.Quarantine(kn.Mean()), turned, 8)
    liars, deviation = estimate(reports[-1])
    assert abs(liars - 4) < 0.5 and deviation < 0.5
    unsure, wide = estimate({"a": {"suspicion": 8.0}})
    assert unsure == pytest.approx(0.5) and wide == pytest.approx(0.5)


def test_equal_updates_are_nobodys_fault() -> None:
    found = scores(geometry(Matrix(torch.ones(8, 30), [1.0] * 8)))
    assert found.isfinite().all() and found.max() < 1.0
    zero = scores(geometry(Matrix(torch.zeros(8, 30), [1.0] * 8)))
    assert zero.isfinite().all()


@pytest.mark.parametrize("wrong", [{"most": 13.0}, {"usual": 0.0}, {"fading": 1.0}, {"limit": math.nan}])
def test_settings_out_of_bounds_are_refused(wrong) -> None:
    with pytest.raises(kn.AdmissionError):
        kn.Quarantine(kn.Mean(), **wrong)
