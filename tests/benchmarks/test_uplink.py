"""The measurement of bytes until a model is good runs in its smallest setting, goes on where it was, and draws."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.uplink import BASELINE, CODECS, Course, table

ROOT = Path(__file__).parents[2]


def test_every_codec_is_run_once_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "benchmarks.uplink", "--quick", "--folder", str(tmp_path), "--plot"]
    tables = []
    for name in ("first.svg", "again.svg"):
        done = subprocess.run(
            [*command, str(tmp_path / name)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
        )
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout)
    assert tables[0] == tables[1]
    assert [line.split(" | ")[0].removeprefix("| ") for line in tables[0].splitlines()[2:]] == list(CODECS)
    assert len(list(tmp_path.glob("*/*/run.db"))) == len(CODECS)
    assert "<svg" in (tmp_path / "again.svg").read_text()


def test_the_table_counts_bytes_until_the_accuracy_is_reached() -> None:
    base = Course(BASELINE, [(4_000_000, 0.8), (8_000_000, 0.86), (12_000_000, 0.9)], 32.0)
    small = Course("small", [(100_000, 0.84), (200_000, 0.85), (300_000, 0.89)], 0.8)
    never = Course("never", [(1, 0.1)], 0.1)
    rows = table([base, small, never]).splitlines()[2:]
    assert rows[0] == "| float32 | 32.00 | 8.0 | 1.0x | 85.33 % |"
    assert rows[1] == "| small | 0.80 | 0.2 | 40.0x | 86.00 % (+0.67) |"
    assert rows[2].startswith("| never | 0.10 | never |  | 10.00 %")
