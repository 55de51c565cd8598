"""The measurement of sending less often runs in its smallest setting."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sending_less import WAYS
from koinon.data.named import DEBIAN

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not DEBIAN.exists(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_every_way_is_run_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.sending_less", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines()[2:]] == list(WAYS)
    assert len(list(tmp_path.glob("*/*/run.db"))) == len(WAYS)
