import re
import subprocess
import sys
from pathlib import Path

import pytest

from koinon.run.app import load_app

EXAMPLES = Path(__file__).parents[2] / "examples"
APPS = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "demo.py")
HOSPITALS = ("cleveland", "hungary", "long-beach", "switzerland")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("app", APPS, ids=lambda path: path.stem)
def test_an_example_is_short_and_runs(app: Path, tmp_path: Path) -> None:
    assert len(app.read_text().splitlines()) < 80
    ended = run(tmp_path, "-m", "koinon.cli", "simulate", str(app), "--rounds", "2")
    assert ended.returncode == 0, ended.stderr
    (report,) = tmp_path.glob("runs/*/report.html")
    assert "2 of 2" in report.read_text()


def test_a_hospital_alone_holds_what_it_has_in_the_simulation() -> None:
    app = load_app(str(EXAMPLES / "hospitals.py"))
    assert sorted(app.clients().ids) == sorted(HOSPITALS)
    for hospital in HOSPITALS:
        alone, simulated = app.node_data(hospital), app.clients()[hospital]
        for part in ("train", "test"):
            assert getattr(alone, part).inputs.equal(getattr(simulated, part).inputs)
            assert getattr(alone, part).targets.equal(getattr(simulated, part).targets)


def test_the_demo_survives_its_kills_and_shows_what_the_federation_is_worth(tmp_path: Path) -> None:
    ended = run(tmp_path, str(EXAMPLES / "demo.py"))
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"long-beach was killed in round 1\d, the server in round 2\d", ended.stdout)
    assert "Bit for bit" in ended.stdout
    together = {name: float(row.split()[-1]) for name, row in _rows(ended.stdout).items()}
    assert together["federated"] > 0.68, "0.78 on average; noise costs up to a tenth in one run of many"
    assert together["without noise"] > max(together[f"{name} alone"] for name in HOSPITALS)
    assert "Secure sum: the server learns the sum of a round and no update" in ended.stdout
    (report,) = tmp_path.glob("runs/*/report.html")
    page = report.read_text()
    assert "all data pooled" in page and "30 of 30" in page
    assert "the server learns the sum of a round and no update" in page and "noise by the server" in page


def _rows(text: str) -> dict[str, str]:
    """The table's lines on accuracy, which stand before those on AUROC, by model."""
    lines = text.partition("Accuracy")[2].partition("AUROC")[0].splitlines()
    return {re.split(r"\s{2,}", line.strip())[0]: line for line in lines if line.strip()}
