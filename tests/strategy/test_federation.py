"""The definition: what it refuses, and when two machines have the same one."""

import functools
import subprocess
import sys

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.describe import describe
from koinon.run.explain import explain


def model():
    return nn.Linear(4, 2)


def other_model():
    return nn.Sequential(nn.Linear(4, 2))


def federation(**changes):
    learner = {"model": model, "loss": nn.CrossEntropyLoss()} | changes.pop("learner", {})
    return kn.Federation(**({"learner": kn.TorchLearner(**learner), "strategy": kn.fedavg(), "rounds": 3} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"learner": {"model": other_model}},
        {"learner": {"epochs": 2}},
        {"learner": {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}},
        {"learner": {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))}},
        {"learner": {"optimizer": functools.partial(torch.optim.SGD, lr=0.06)}},
        {"learner": {"metrics": (kn.Accuracy(),)}},
        {"strategy": kn.fedprox(0.1)},
        {"strategy": kn.fedavg(stages=(kn.Clip(1.0),))},
        {"strategy": kn.fedavg(sample=kn.Uniform(3))},
        {"evaluation": kn.Evaluation(federated=False)},
    ],
)
def test_the_digest_changes_with_what_is_run(changes):
    assert federation(**changes).digest != federation().digest


@pytest.mark.parametrize(
    "changes",
    [{}, {"rounds": 9}, {"evaluation": kn.Evaluation(test=lambda: kn.data.load("wine"))}, {"strategy": kn.fedavg()}],
)
def test_the_digest_does_not_change_with_what_is_the_servers_business(changes):
    assert federation(**changes).digest == federation().digest


APP = """
import torch
from torch import nn
import koinon as kn
width = {width}
def scale():
    return width
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x):
        return {body}
federation = kn.Federation(kn.TorchLearner(lambda: Net(), nn.CrossEntropyLoss()), kn.fedavg(), 2)
if __name__ == "__main__":
    print("never run")
"""


def test_the_digest_is_equal_in_other_processes_and_folders_and_sees_the_source(tmp_path):
    def digest(folder, body, width=1):
        path = tmp_path / folder / "app.py"
        path.parent.mkdir()
        path.write_text(APP.format(width=width, body=body))
        code = f"from koinon.run.app import load_app; print(load_app({str(path)!r}).federation.digest)"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert digest("here", "self.layer(x)") == digest("there", "self.layer(x)")
    assert digest("changed", "self.layer(2 * x)") != digest("again", "self.layer(x)")
    assert digest("one", "scale() * self.layer(x)") != digest("two", "scale() * self.layer(x)", width=2)


def test_frozen_parameters_are_part_of_the_definition():
    def frozen(value):
        module = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
        nn.init.constant_(module[0].weight, value)
        module[0].requires_grad_(False)
        nn.init.zeros_(module[0].bias)
        return federation(learner={"model": module}).digest

    assert frozen(1.0) == frozen(1.0) != frozen(2.0)


def test_values_are_described_by_value():
    assert describe({"b": 1, "a": (2.0, None)}) == describe({"a": [2.0, None], "b": 1})
    assert describe(functools.partial(int, base=2)) != describe(functools.partial(int, base=3))

    def adder(number):
        return lambda value: value + number

    assert describe(adder(1)) != describe(adder(2))
    assert describe(adder(1)) == describe(adder(1))


def test_no_rounds_are_refused():
    with pytest.raises(kn.AdmissionError, match="at least one round"):
        federation(rounds=0)


@pytest.mark.parametrize("recipe", [kn.fedavg, kn.fedprox, kn.fedadam, kn.fedyogi, kn.fedadagrad])
def test_every_recipe_is_frozen_and_takes_the_parts(recipe):
    strategy = recipe(sample=kn.Uniform(3), stages=(kn.Clip(1.0),), codec=kn.Float32(), reducer=kn.Mean())
    assert strategy.name == recipe.__name__
    assert strategy.sample == kn.Uniform(3)
    with pytest.raises(AttributeError):
        strategy.name = "other"


def test_explain_says_that_the_server_sees_each_update():
    explanation = explain(federation())
    assert "each node's update" in dict(explanation.learns)["the server"]
    assert explanation.epsilon is None
    assert explanation.tolerated_liars == 0
    assert explanation.bytes_up == explanation.bytes_down == 4 * 10
    assert "1 (L2)" in dict(explain(federation(strategy=kn.fedavg(stages=(kn.Clip(1.0),)))).facts)["bound on an update"]
