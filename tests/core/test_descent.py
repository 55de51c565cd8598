import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from koinon.core.descent import plain_rate


def test_plain_descent_is_recognised() -> None:
    assert plain_rate(functools.partial(torch.optim.SGD, lr=0.1)) == 0.1
    assert plain_rate(functools.partial(torch.optim.SGD, lr=1)) == 1.0


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        functools.partial(torch.optim.SGD, lr=-0.1),
        functools.partial(torch.optim.SGD, lr=float("nan")),
        functools.partial(torch.optim.SGD, lr=torch.tensor(0.1)),
        functools.partial(torch.optim.SGD, [torch.zeros(1)], lr=0.1),
        functools.partial(torch.optim.SGD),
        functools.partial(torch.optim.Adam, lr=0.1),
        torch.optim.SGD,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ],
)
def test_everything_else_is_left_to_torch(make: object) -> None:
    assert plain_rate(make) is None


def test_plain_descent_does_not_load_torchs_compiler(tmp_path: Path) -> None:
    code = """
import sys, torch, koinon as kn
learner = kn.TorchLearner(torch.nn.Linear(2, 1), loss=torch.nn.MSELoss())
federation = kn.Federation(learner=learner, strategy=kn.fedavg(), rounds=1)
data = kn.Samples(torch.ones(4, 2), torch.ones(4, 1))
run = kn.simulate(federation, kn.Population.of([data]), runs=sys.argv[1])
assert "torch._dynamo" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
