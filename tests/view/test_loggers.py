"""TensorBoard and MLflow are told of a run: read back by their own readers, from a real server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import koinon as kn
from koinon.cli import main
from koinon.durable.history import RunInfo
from koinon.view.progress import Quiet

DIGITS = kn.data.load("digits")


def simulated(folder, *callbacks, rounds=3, **settings):
    learner = kn.TorchLearner(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        nn.CrossEntropyLoss(),
        partial(torch.optim.SGD, lr=0.3),
        metrics=(kn.Accuracy(),),
    )
    made = kn.Federation(learner, kn.fedavg(), rounds, kn.Evaluation(test=lambda: DIGITS.test))
    clients = DIGITS.split(kn.IID(), clients=4)
    return kn.simulate(made, clients, runs=folder, callbacks=callbacks, **{"progress": Quiet()} | settings)


class Cut(Quiet):
    def __init__(self, round):
        self.round = round

    def closed(self, record):
        if record.round == self.round:
            raise KeyboardInterrupt


def only(folder):
    """The id of the one run that is there."""
    (run,) = folder.iterdir()
    return run.name


def curves(folder):
    """Every curve: round -> value."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: {event.step: event.value for event in read.Scalars(name)} for name in read.Tags()["scalars"]}


def test_tensorboard_shows_the_curves_of_a_run(tmp_path):
    run = simulated(tmp_path / "runs", kn.TensorBoard(tmp_path / "curves"))
    shown = curves(tmp_path / "curves" / run.id)
    for record in run.history:
        assert shown["metrics/accuracy"][record.round] == pytest.approx(record.metrics["accuracy"])
        assert record.training
        for name, value in record.training.items():
            assert shown[f"training/{name}"][record.round] == pytest.approx(value)
        assert shown["round/bytes_up"][record.round] == pytest.approx(record.bytes_up)
        assert shown["round/accepted"][record.round] == 4
    assert {len(curve) for curve in shown.values()} <= {3, 2}, "what clients judge is known a round later"
    assert not any(name.endswith(("/0", "/1", "/2", "/3")) for name in shown), "nothing of one client"


def test_the_curves_of_a_run_that_was_cut_go_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulated(tmp_path / "runs", kn.TensorBoard(tmp_path / "curves"), progress=Cut(2))
    id = only(tmp_path / "curves")
    run = simulated(tmp_path / "runs", kn.TensorBoard(tmp_path / "curves"), resume=id)
    shown = curves(tmp_path / "curves" / id)["metrics/accuracy"]
    assert shown[1] == pytest.approx(run.history[0].metrics["accuracy"])
    assert shown[3] == pytest.approx(run.history[2].metrics["accuracy"])


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(kn.Unavailable, match="cannot be written to"):
        simulated(tmp_path / "runs", kn.TensorBoard(tmp_path / "file"))


def test_the_command_line_writes_curves(tmp_path, monkeypatch, capsys):
    app = str(Path("examples/digits.py").resolve())
    monkeypatch.chdir(tmp_path)
    arguments = ["simulate", app, "--clients", "4", "--rounds", "2", "--tensorboard", "curves", "--json"]
    monkeypatch.setattr(sys, "argv", ["koinon", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    id = json.loads(capsys.readouterr().out.splitlines()[-1])["id"]
    assert len(curves(tmp_path / "curves" / id)["round/seconds"]) == 2


def test_the_server_of_a_network_writes_curves_too(tmp_path):
    app = str(Path("examples/digits.py").resolve())
    command = [
        sys.executable,
        "-m",
        "koinon.cli",
        "up",
        app,
        "--nodes",
        "2",
        "--rounds",
        "2",
        "--tensorboard",
        "curves",
    ]
    subprocess.run([*command, "--json"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert curves(tmp_path / "curves" / only(tmp_path / "curves"))["round/accepted"] == {1: 2.0, 2: 2.0}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    """A real MLflow server: its address and its process."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    told = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=told, start_new_session=True)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        else:
            pytest.fail((folder / "log").read_text())
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def told_of(uri, id):
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("koinon")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`koinon.run` = '{id}'")
    return client, found


def test_mlflow_is_told_of_a_run(tmp_path, tracking):
    uri, _ = tracking
    run = simulated(tmp_path, kn.MLflow(uri))
    client, found = told_of(uri, run.id)
    assert found.info.status == "FINISHED" and found.info.run_name == run.id
    assert found.data.params["definition"] == run.info.definition and found.data.params["rounds"] == "3"
    curve = client.get_metric_history(found.info.run_id, "metrics/accuracy")
    assert {point.step: point.value for point in curve} == {
        record.round: pytest.approx(record.metrics["accuracy"]) for record in run.history
    }


def test_a_run_that_was_cut_goes_on_as_the_same_run_of_mlflow(tmp_path, tracking):
    uri, _ = tracking
    with pytest.raises(KeyboardInterrupt):
        simulated(tmp_path, kn.MLflow(uri), progress=Cut(2))
    id = only(tmp_path)
    assert told_of(uri, id)[1].info.status == "KILLED"
    simulated(tmp_path, kn.MLflow(uri), resume=id)
    client, found = told_of(uri, id)
    assert found.info.status == "FINISHED"
    assert {point.step for point in client.get_metric_history(found.info.run_id, "metrics/accuracy")} >= {1, 3}


def test_a_point_that_mlflow_does_not_take_is_told_at_the_latest_when_the_run_ends(tracking):
    told = kn.MLflow(tracking[0])
    info = RunInfo("brave-otter", "app.py", "00" * 32, 1, 0, 10, "2030-01-02T03:04:05Z", "running", "network")
    with pytest.raises(MlflowException, match="what"), told.following(info):
        told.evaluated(1, {"what?": 0.5})


def test_where_nobody_answers_the_run_does_not_begin(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(kn.Unavailable, match=f"MLflow at {uri} cannot be told of the run"):
        simulated(tmp_path, kn.MLflow(uri))


class Ending(Quiet):
    """Ends the tracking server in the middle of a run."""

    def __init__(self, process):
        self.process, self.notes = process, []

    def closed(self, record):
        if record.round == 1:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def note(self, text):
        self.notes.append(text)


def test_a_tracking_server_that_goes_away_does_not_take_the_run_with_it(tmp_path, tracking):
    uri, process = tracking
    view = Ending(process)
    run = simulated(tmp_path / "with", kn.MLflow(uri), progress=view)
    assert run.info.status == "finished" and len(run.history) == 3
    assert run.digest == simulated(tmp_path / "without").digest
    assert len(view.notes) == 1 and "the callback MLflow failed and is told no more" in view.notes[0]
