"""A debugger where a client fails: its traceback, its frame, and a run that goes on."""

import io
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.view.progress import Quiet

APP = """
    import torch
    from torch import nn
    import koinon as kn

    def loss(outputs, targets):
        culprit = float(targets.sum())
        if culprit > 100:
            raise RuntimeError("a broken label")
        return nn.functional.mse_loss(outputs, targets)

    def client(number):
        return kn.Samples(torch.ones(4, 2), torch.full((4, 1), 1000.0 if number == 2 else 1.0))

    federation = kn.Federation(
        kn.TorchLearner(lambda: nn.Linear(2, 1), loss), kn.fedavg(), 1, kn.Evaluation(federated=False)
    )
    population = kn.Population.of(client, size=4)
"""


def test_the_frame_that_raised_can_be_looked_at_and_the_run_goes_on(tmp_path):
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    command = [sys.executable, "-m", "koinon.cli", "simulate", "app.py", "--json"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=True)
    done = subprocess.run(
        [*command, "--debug"],
        cwd=tmp_path,
        input="p culprit\nq\n",
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "(Pdb) 4000.0" in done.stdout
    assert "Traceback" in done.stderr
    assert "a broken label" in done.stderr
    assert "client 2 failed in round 1" in done.stderr
    assert "3 of 4 accepted" in done.stderr
    digest = '"digest":"'
    assert done.stdout.split(digest)[1][:64] == plain.stdout.split(digest)[1][:64]
    workers = subprocess.run(
        [*command, "--debug", "--workers", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert workers.returncode == 2
    assert "leave --engine and --workers out with --debug" in workers.stderr


def test_what_ends_a_run_is_looked_at_and_ends_it(tmp_path, monkeypatch, capsys):
    def client(number):
        if number == 1:
            raise KeyError("no such file")
        return kn.Samples(torch.ones(4, 2), torch.ones(4, 1))

    learner = kn.TorchLearner(lambda: nn.Linear(2, 1), nn.MSELoss())
    made = kn.Federation(learner, kn.fedavg(), 1, kn.Evaluation(federated=False))
    monkeypatch.setattr("sys.stdin", io.StringIO("p number\nq\n"))
    with pytest.raises(KeyError):
        kn.simulate(made, kn.Population.of(client, size=2), runs=tmp_path, engine=kn.Debugged(), progress=Quiet())
    seen = capsys.readouterr()
    assert "(Pdb) 1" in seen.out
    assert "training ended in round 1, at client 1" in seen.err
