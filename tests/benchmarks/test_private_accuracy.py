"""The measurement of accuracy under privacy runs in its smallest setting, and its features see each image alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.private_accuracy import CLIENTS_DELTA, DELTA, EPSILON
from benchmarks.scattering import CHANNELS, PLACES, normalised, scattering

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The lines of all tables, of one process that draws as well."""
    folder = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", "benchmarks.private_accuracy", "--quick", "--folder", str(folder)]
    command += ["--draw", str(folder / "curve.svg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "<svg" in (folder / "curve.svg").read_text()
    records, _, others = done.stdout.partition("\nrecords\n")[2].partition("\n\nclients\n")
    clients, _, turns = others.partition("\n\nturns\n")
    return {"records": records.splitlines(), "clients": clients.splitlines(), "turns": turns.splitlines()}


def test_every_line_tells_accuracy_and_seconds(tables: dict[str, list[str]]) -> None:
    rows = [row for lines in tables.values() for row in lines]
    assert rows and all(re.search(r" \d+\.\d\d %  +\d+ s  ", row) for row in rows), rows


def test_records_are_trained_on_within_the_budget_by_every_recipe(tables: dict[str, list[str]]) -> None:
    rows = tables["records"]
    assert [row.split(",")[0].strip() for row in rows] == ["linear on scattering"] * 2 + ["network on pixels"] * 2
    assert all(f"at delta {DELTA:g} per record" in row for row in rows)
    spent = [float(re.findall(r"epsilon (\d+\.\d+)", row)[0]) for row in rows]
    assert all(first < 0.9 * last and 0.99 * EPSILON < last <= EPSILON for first, last in (spent[:2], spent[2:]))


def test_clients_are_trained_on_with_noise_and_without(tables: dict[str, list[str]]) -> None:
    noisy, free = tables["clients"]
    assert f"at delta {CLIENTS_DELTA:g} per client" in noisy and free.endswith("without noise")


def test_clients_in_turn_spend_the_same_with_either_noise(tables: dict[str, list[str]]) -> None:
    independent, correlated = tables["turns"]
    assert independent.partition("epsilon")[2][:4] == correlated.partition("epsilon")[2][:4]
    assert "independent noise" in independent and "correlated noise" in correlated
    assert all("replace-one neighbours, no sampling" in row for row in tables["turns"])


def test_the_features_of_an_image_are_of_it_alone() -> None:
    images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features = normalised(images)
    assert features.shape == (40, CHANNELS, PLACES, PLACES)
    others = torch.cat([torch.zeros(3, 1, 28, 28), images[20:21], torch.ones(1, 1, 28, 28)])
    assert torch.allclose(normalised(others)[3], features[20], atol=1e-4)


def test_an_even_image_has_its_average_and_no_edges() -> None:
    (channels,) = scattering(torch.full((1, 1, 28, 28), 0.5))
    assert torch.allclose(channels[0], torch.tensor(0.5)) and channels[1:].abs().max() < 1e-5


@pytest.mark.parametrize("first", [1, 9])
def test_stripes_are_seen_by_the_wavelets_that_look_across_them(first: int) -> None:
    """Eight angles of a scale from channel `first` on, of which the fifth is at right angles to the first.

    A wavelet lets pass, of the two waves that a cosine is the sum of, the one that runs its way: half of it.
    """
    frequency = 0.75 * torch.pi / (1 if first == 1 else 2)
    stripes = torch.cos(frequency * torch.arange(28.0)).expand(1, 1, 28, 28)
    standing, lying = (scattering(each)[0, first : first + 8, 3, 3] for each in (stripes, stripes.transpose(2, 3)))
    assert abs(standing[0] - 0.5) < 0.03 and standing[4] < 1e-5
    assert abs(lying[4] - 0.5) < 0.03 and lying[0] < 1e-5
