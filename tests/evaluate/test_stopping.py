"""Early stopping: what it goes by, that it ends runs in every runtime, and that a run that was cut ends where it would have."""

import functools
import json
import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.durable.store import Store
from koinon.view.progress import Quiet

DIGITS = kn.data.load("digits")


def course(*values, metric="accuracy"):
    return [{metric: value} for value in values]


def test_it_waits_for_as_many_evaluations_as_its_patience():
    stop = kn.EarlyStopping("accuracy", patience=3)
    assert stop.enough(course(0.1, 0.5, 0.4, 0.5)) == ""
    assert stop.enough(course(0.1, 0.5, 0.4, 0.5, 0.3)) == "accuracy has not been better than 0.5 in 3 evaluations"
    assert stop.enough(course(0.1, 0.5, 0.4, 0.5, 0.6, 0.5, 0.5)) == ""
    assert stop.enough([]) == ""


def test_a_value_must_be_better_by_the_least_that_counts():
    stop = kn.EarlyStopping("accuracy", patience=2, min_delta=0.1)
    assert stop.enough(course(0.5, 0.55, 0.59)) != ""
    assert stop.enough(course(0.5, 0.61, 0.7)) == ""


def test_of_a_loss_less_is_better():
    stop = kn.EarlyStopping("loss", patience=2, mode="min")
    assert stop.enough(course(3.0, 2.0, 1.0, metric="loss")) == ""
    assert stop.enough(course(1.0, 2.0, 3.0, metric="loss")) == "loss has not been better than 1 in 2 evaluations"
    assert stop.enough(course(1.0, math.nan, math.nan, metric="loss")) != "", "what is no number is not better"


def test_a_value_may_be_good_enough():
    assert kn.EarlyStopping("accuracy", threshold=0.8).enough(course(0.5, 0.8)) == "accuracy is 0.8, and 0.8 is enough"
    assert kn.EarlyStopping("loss", mode="min", threshold=0.1).enough(course(0.5, 0.11, metric="loss")) == ""
    assert kn.EarlyStopping("loss", mode="min", threshold=0.1).enough(course(0.5, 0.1, metric="loss")) != ""


def test_what_cannot_stop_is_refused():
    for wrong in ({"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.inf}):
        with pytest.raises(kn.AdmissionError, match="early stopping needs a patience"):
            kn.EarlyStopping("accuracy", **wrong)
    with pytest.raises(kn.AdmissionError, match='the "max" or the "min"'):
        kn.EarlyStopping("accuracy", mode="best")
    with pytest.raises(kn.AdmissionError, match="give a test set beside stop="):
        kn.Evaluation(stop=kn.EarlyStopping("accuracy"))
    with pytest.raises(kn.AdmissionError, match="looks at accuracy, and the learner measures loss"):
        federation(kn.EarlyStopping("accuracy"), metrics=())
    with pytest.raises(kn.AdmissionError, match="looks at train_loss, and the learner measures accuracy, loss"):
        federation(kn.EarlyStopping("train_loss"))
    with pytest.raises(kn.AdmissionError, match="looks at f1, and the server measures loss"):
        kn.EarlyStopping("f1").enough(course(1.0, metric="loss"))


def federation(stop, rounds=40, every=2, metrics=(kn.Accuracy(),)):
    learner = kn.TorchLearner(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.3),
        metrics=metrics,
    )
    evaluation = kn.Evaluation(test=lambda: DIGITS.test, every=every, federated=False, stop=stop)
    return kn.Federation(learner, kn.fedavg(), rounds, evaluation)


STOP = kn.EarlyStopping("accuracy", threshold=0.85)


def simulate(made, folder, **more):
    return kn.simulate(made, DIGITS.split(kn.IID(), clients=4), runs=folder, **{"progress": Quiet()} | more)


def test_a_simulation_ends_when_it_is_good_enough(tmp_path):
    run = simulate(federation(STOP), tmp_path)
    scores = [record.metrics["accuracy"] for record in run.history if record.metrics]
    assert scores[-1] >= 0.85 > max(scores[:-1])
    assert run.info.status == "finished"
    assert 2 < len(run.history) < 40
    assert len(run.history) % 2 == 0, "it was evaluated every other round"
    longer = simulate(federation(None), tmp_path)
    assert [record.digest for record in longer.history[: len(run.history)]] == [record.digest for record in run.history]
    again = simulate(federation(STOP), tmp_path, resume=run.id)
    assert again.digest == run.digest


def test_a_run_that_was_cut_ends_where_it_would_have(tmp_path):
    whole = simulate(federation(STOP), tmp_path / "whole")

    class Killed(Quiet):
        def closed(self, record):
            if record.round == kill:
                raise KeyboardInterrupt

    for kill in (2, len(whole.history)):  # the second: its record is durable, and that it was the last is not
        with pytest.raises(KeyboardInterrupt):
            simulate(federation(STOP), tmp_path / str(kill), progress=Killed())
        (begun,) = (tmp_path / str(kill)).iterdir()
        resumed = simulate(federation(STOP), tmp_path / str(kill), resume=begun.name)
        assert resumed.digest == whole.digest
        assert len(resumed.history) == len(whole.history)
        assert resumed.info.status == "finished"


APP = """
    import functools
    import torch
    from torch import nn
    import koinon as kn

    digits = kn.data.load("digits")
    learner = kn.TorchLearner(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.3),
        metrics=(kn.Accuracy(),),
    )
    stop = kn.EarlyStopping("accuracy", threshold=0.85)
    evaluation = kn.Evaluation(test=lambda: digits.test, every=2, federated=True, stop=stop)
    federation = kn.Federation(learner, kn.fedavg(), 40, evaluation)

    def population(clients=2):
        parts = digits.split(kn.IID(), clients)
        return kn.Population.of([kn.DataSet(parts[client].train, digits.test) for client in parts.ids])

    def data(source):
        raise kn.AdmissionError("only population:I/N")
"""


def test_a_server_ends_its_run_and_its_nodes_have_the_model(tmp_path):
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    command = [sys.executable, "-m", "koinon.cli", "up", "app.py", "--nodes", "2", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["metrics"]["accuracy"] >= 0.85
    assert 2 <= result["rounds"] < 40
    assert "no more rounds: accuracy is 0." in done.stderr
    store = Store(tmp_path / result["path"])
    assert store.info().status == "finished"
    assert all(store.nodes().values())
    assert sorted(store.history()[-1].by_client) == sorted(store.nodes()), (
        "what nodes say of the last model is of its round"
    )
