"""A method of one's own, as the documentation shows it: 40 lines, and the equations of its paper."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import koinon as kn
from koinon.strategy.method import Extended, extended
from tests.strategy.lines import COPIES, EVERYONE, RATE, federation, first, gradient, simulated

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "extend.md"
SHARE, ROUNDS, EPOCHS = 0.3, 4, 2


@pytest.fixture(scope="module")
def shown():
    """The class that the page shows, and how many lines it takes."""
    (code,) = [
        block for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S) if "FedCM" in block
    ]
    names = {"__name__": "__main__", "kn": kn, "torch": torch, "dataclass": dataclass, "replace": replace}
    exec(code, names)
    return names["ClientMomentum"], len(code.splitlines())


def by_the_paper():
    """FedCM in float64: the direction is the mean of all clients' mean steps of the round before."""
    w, direction = first(), torch.zeros(4).double()
    for _ in range(ROUNDS):
        moved, went = [], []
        for client in EVERYONE:
            own, steps = w.clone(), EPOCHS * COPIES[client] // 4
            for _ in range(steps):
                own = own - RATE * (SHARE * gradient(own, client) + (1 - SHARE) * direction)
            moved.append(own - w)
            went.append((w - own) / (steps * RATE))
        w, direction = w + torch.stack(moved).mean(0), torch.stack(went).mean(0)
    return torch.cat((w, direction))


def test_an_algorithm_takes_forty_lines(tmp_path, shown):
    method, lines = shown
    assert lines <= 40
    run = simulated(federation(kn.Strategy("fedcm", method=method(SHARE)), ROUNDS, EPOCHS), tmp_path)
    torch.testing.assert_close(run.vector.double(), by_the_paper(), rtol=5e-6, atol=5e-6)


def test_a_federation_made_again_with_another_strategy_has_its_method_alone(shown):
    method, _ = shown
    one = federation(kn.Strategy("fedcm", method=method(SHARE)))
    again = replace(one, rounds=2)
    assert again.learner == one.learner and again.digest == one.digest
    other = replace(one, strategy=kn.scaffold(6))
    assert isinstance(other.learner, Extended) and not isinstance(other.learner.within, Extended)
    assert replace(one, strategy=kn.fedavg()).learner is one.learner.within
    assert extended(one.learner, None) is one.learner.within
