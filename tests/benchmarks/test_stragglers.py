"""The measurement of virtual time runs in its smallest setting, and draws what it found."""

import subprocess
import sys
from pathlib import Path

from benchmarks.stragglers import WAYS

ROOT = Path(__file__).parents[2]


def test_every_way_is_run_once_and_drawn(tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    command = [sys.executable, "-m", "benchmarks.stragglers", "--quick", "--folder", str(tmp_path), "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines()[2:]] == list(WAYS)
    assert "virtual minutes" in plot.read_text()
    assert len(list(tmp_path.glob("*/*/run.db"))) == len(WAYS)
