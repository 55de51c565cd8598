"""The study of rules beside byzfl's goes on where it was; what it trains is what it says, and both get the same lots."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import koinon as kn
from benchmarks.parallel_sgd import HIDDEN, PIXELS, SIZES, Liars, Training, accuracy, first, gradients, logits, parts
from benchmarks.robust_tables import ADAPTIVE, BUCKETED, PLAIN, Cell, Summary, cells, images, mimics, rules, verdict
from koinon.core.rng import generator

ROOT = Path(__file__).parents[2]


def test_the_study_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.robust_tables", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| Krum | " in done.stdout and "| 0.33 | 1 | " in done.stdout
    kept = tmp_path / "cells.jsonl"
    lines = kept.read_text().splitlines()
    assert len(lines) - 1 == len(list(cells(quick=True)))
    kept.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # killed while it wrote
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert again.stdout == done.stdout
    assert kept.read_text().splitlines()[:-2] == lines[:-1]


def test_no_run_is_listed_twice_and_each_rule_is_known() -> None:
    every = list(cells(quick=False))
    assert len(set(every)) == len(every)
    assert all((cell.library, cell.rule) in rules(1, 8) for cell in every)


def test_gradients_are_those_of_autograd() -> None:
    model, rng = first(3), torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(4, 6, PIXELS, generator=rng), torch.randint(10, (4, 6), generator=rng)
    found = gradients(model, inputs, targets)
    for client in range(4):
        leaf = model.clone().requires_grad_()
        nn.functional.cross_entropy(logits(leaf, inputs[client]), targets[client]).backward()
        assert leaf.grad is not None and torch.allclose(found[client], leaf.grad, atol=1e-6)


def test_logits_are_those_of_two_linear_layers() -> None:
    model, inputs = first(0), torch.randn(5, PIXELS, generator=torch.Generator().manual_seed(0))
    one, two = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, 10)
    weights = model.split(SIZES)
    with torch.no_grad():
        one.weight.copy_(weights[0].view(PIXELS, HIDDEN).T)
        one.bias.copy_(weights[1])
        two.weight.copy_(weights[2].view(HIDDEN, 10).T)
        two.bias.copy_(weights[3])
        assert torch.allclose(logits(model, inputs), two(one(inputs).relu()), atol=1e-5)


@pytest.mark.parametrize(("similarity", "least"), [(0.0, 1), (1.0, 9)])
def test_every_image_has_one_owner_and_alike_clients_have_all_labels(similarity: float, least: int) -> None:
    targets = torch.arange(10).repeat_interleave(100)
    owned = parts(targets, 10, similarity, seed=0)
    assert torch.cat(owned).sort().values.equal(torch.arange(1000))
    labels = [len(targets[part].unique()) for part in owned]
    assert all(count == 1 if similarity == 0 else count >= least for count in labels)


@pytest.mark.parametrize("name", ["median", "centred clipping", "bucketing, median", "bucketing, centred clipping"])
def test_where_both_libraries_mean_the_same_they_say_the_same(name: str) -> None:
    """With the same lots; Krum and the geometric median differ by what each takes them to be."""
    our, their = (rules(5, 300)[library, name]() for library in ("Koinon", "byzfl"))
    for step in range(3):  # centred clipping remembers
        updates = torch.randn(25, 300, generator=generator(0, "updates", step))
        lots = (generator(0, "lots", step) for _ in range(2))
        assert torch.allclose(our(updates, next(lots)), their(updates, next(lots)), atol=1e-5)


def test_byzfl_does_not_change_what_it_is_given() -> None:
    updates = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    before = updates.clone()
    rules(2, 40)["byzfl", ADAPTIVE]()(updates, generator(0, "lots"))
    assert updates.equal(before)


def test_mimics_stay_with_whom_they_copied_first() -> None:
    seen: list[torch.Tensor] = []

    def rule(updates: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        seen.append(updates)
        return updates.mean(0)

    training = Training(honest=4, steps=5, rate=0.1, batch=2)
    accuracy(images(quick=True), training, 0.0, Liars(2, kn.attack.Mimic(), faithful=True), rule, seed=0)
    copied = [{int((each[:4] - lie).square().sum(1).argmin()) for lie in each[4:]} for each in seen]
    assert copied[0] == copied[1] == copied[4] and len(copied[0]) == 1
    assert all(lie.equal(each[next(iter(copied[0]))]) for each in seen for lie in each[4:])


def test_a_verdict_allows_one_standard_deviation() -> None:
    their = Summary(80.0, 1.0, 3)
    assert verdict(Summary(79.1, 1.0, 3), their) == "held" and verdict(Summary(78.9, 1.0, 3), their) == "missed"
    assert verdict(Summary(90.0, math.nan, 1), their) == "–"


def test_the_table_has_means_over_seeds() -> None:
    found = {Cell("mimics", "Koinon", "mean", "", 0, 0.0, 0): 0.9}
    for rule in (*PLAIN, *BUCKETED):
        for seed, value in enumerate((0.5, 0.6, 0.7)):
            found[Cell("mimics", "Koinon", rule, "mimic", 5, 0.0, seed)] = value
            found[Cell("mimics", "byzfl", rule, "mimic", 5, 0.0, seed)] = value + 0.2
    lines = mimics(found).splitlines()
    assert lines[2] == "| Krum | 60.0 ± 10.0 | 80.0 ± 10.0 | missed |"
    assert len(lines) == 2 + 8 + 1 and lines[-1] == "| mean, nobody lies | 90.0 | | |"
