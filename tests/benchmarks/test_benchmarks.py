"""Every benchmark runs in its smallest setting, and memory keeps its promise at a size that a test can afford."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.__main__ import NAMES
from benchmarks.figures import Figure, table
from benchmarks.trials import APPS
from koinon.data.named import DEBIAN
from koinon.run.app import load_app

ROOT = Path(__file__).parents[2]


WITH_IMAGES = pytest.mark.skipif(
    not DEBIAN.exists(), reason="the Debian package dataset-fashion-mnist is not installed"
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=WITH_IMAGES if name == "slow_network" else ()) for name in NAMES]
)
def test_a_benchmark_prints_its_figures(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.partition(f"\n{name}\n")[2].splitlines()
    assert rows and all(re.search(r"\d (MiB|KiB|MB|MB/s|ms|s|%|rounds)\b|%", row) for row in rows), done.stdout


def test_a_table_says_what_was_missed() -> None:
    text = table({"speed": [Figure("fast", 3.0, "ms", 2.0, "< 1 ms", False), Figure("free", 5.0, "ms")]})
    assert "1.50x" in text and text.splitlines()[-2].endswith("missed")


def test_an_unknown_benchmark_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and "no benchmark is called speed" in done.stderr


def test_the_servers_memory_does_not_grow_by_a_model_for_each_node(tmp_path: Path) -> None:
    """25 million parameters: a server that kept its nodes' updates would need 600 MiB more for 8 nodes than for 2."""
    federation = load_app(str(APPS / "large.py")).federation
    length = federation.learner.layout.length
    update = tmp_path / "update"
    update.write_bytes(np.full(length, 1e-3, dtype="<f4").tobytes())
    few, many = (memory.peak("large.py", tmp_path / str(count), count, federation.digest, update) for count in (2, 8))
    model = 4 * length / memory.MIB
    base = memory.without_nodes(tmp_path / "base")
    assert many - few < 0.5 * model
    assert many < base + 3 * model + memory.ALLOWANCE_MIB


def test_the_grid_of_attacks_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.robust_grid", "--quick", "--folder", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("points lost") == 2
    kept = tmp_path / "cells.jsonl"
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # killed while it wrote
    again = subprocess.run([*command, "--draw", str(tmp_path / "map.svg")], capture_output=True, text=True, cwd=ROOT)
    assert again.stdout == first.stdout and "<svg" in (tmp_path / "map.svg").read_text()


def test_detection_prints_a_line_for_each_attack() -> None:
    command = [sys.executable, "-m", "benchmarks.detection", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\| 0\.1 \| (?:nobody|sign flip) \|", done.stdout, re.M)) == 2
