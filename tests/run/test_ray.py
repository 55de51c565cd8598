"""Actors on a Ray cluster: the bits of one process, whoever is lost."""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

import koinon as kn
from koinon.run import schedule
from koinon.run.engine import InProcess
from koinon.view.progress import Quiet

os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # before Ray is imported: it warns of tomorrow's behaviour
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

APP = Path(__file__).parents[1] / "system" / "apps" / "small.py"
QUIET = kn.Evaluation(federated=False)
STORE = 100 << 20
SOON = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
CLI = [sys.executable, "-m", "koinon.cli", "simulate"]


@pytest.fixture(scope="module")
def cluster():
    """A head without room for actors, and a machine with room for two."""
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": SOON}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=2, object_store_memory=STORE)
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


def samples(number: int) -> kn.Samples:
    rng = torch.Generator().manual_seed(number)
    inputs = torch.randn(4 + number % 5, 6, generator=rng)
    return kn.Samples(inputs, (inputs.sum(1) > 0).long())


def federation(rounds: int = 2, **strategy) -> kn.Federation:
    learner = kn.TorchLearner(functools.partial(torch.nn.Linear, 6, 2), torch.nn.CrossEntropyLoss(), batch_size=3)
    return kn.Federation(learner, kn.fedavg(**strategy), rounds, QUIET)


CROWD = kn.Population.of(samples, size=45)


def simulate(made: kn.Federation, folder: Path, population=CROWD, **more) -> kn.Run:
    return kn.simulate(made, population, runs=folder, **{"progress": Quiet(), "engine": kn.OnRay()} | more)


def alone(made: kn.Federation, folder: Path, population=CROWD, **more) -> kn.Run:
    return simulate(made, folder, population, **{"engine": InProcess} | more)


RUNS = {
    "the mean": federation(sample=kn.Uniform(33)),
    "a robust rule": federation(reducer=kn.Median()),
    "a secure sum": federation(stages=(), secure=kn.SecureSum(clip=1.0, bits=16)),
    "memories of a stage": federation(3, stages=(kn.Momentum(0.5),), sample=kn.Uniform(30)),
    "memories of a correction": kn.Federation(federation().learner, kn.feddyn(clients=45, alpha=0.1), 3, QUIET),
    "sizes that vary": federation(codec=kn.Quantize(8) >> kn.Zstd()),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_bits_are_those_of_one_process_and_of_many(name, cluster, tmp_path, monkeypatch):
    made = RUNS[name]
    one = alone(made, tmp_path)
    ways = [alone(made, tmp_path, workers=workers) for workers in (2, 4)]
    monkeypatch.setattr(schedule, "HELD_BYTES", 1)
    ways.append(simulate(made, tmp_path))
    for run in ways:
        assert [record.digest for record in run.history] == [record.digest for record in one.history]
        assert [record.participants for record in run.history] == [record.participants for record in one.history]


def test_liars_see_and_send_the_same(cluster, tmp_path):
    made, attack = federation(reducer=kn.Median()), kn.attack.ALIE()
    one = alone(made, tmp_path, engine=kn.Attacked(attack, liars=5))
    run = simulate(made, tmp_path, engine=kn.Attacked(attack, liars=5, within=kn.OnRay()), workers=2)
    assert run.digest == one.digest != alone(made, tmp_path).digest


def test_a_machine_that_is_lost_in_a_round_changes_nothing(cluster, tmp_path):
    """Its actor waits in the middle of a chunk, so that it can only be lost with it."""
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()
    marker = tmp_path / "training"

    def make(number: int) -> kn.Samples:
        if number >= 20 and ray.get_runtime_context().get_node_id() == victim:
            marker.touch()
            time.sleep(600)
        while number >= 20 and not marker.exists():  # or the others would have done it all before that actor began
            time.sleep(0.05)
        return samples(number)

    victim, killed = node.node_id, []

    def kill() -> None:
        while not marker.exists():
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        killed.append(True)

    made = federation(stages=(kn.Momentum(0.5),))
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run = simulate(made, tmp_path, kn.Population.of(make, size=45), engine=kn.OnRay(actors=3))
    killer.join()
    assert killed
    assert [record.digest for record in run.history] == [record.digest for record in alone(made, tmp_path).history]
    assert all(len(record.participants) == 45 for record in run.history)


def test_a_lost_actor_is_replaced(cluster, tmp_path):
    died = tmp_path / "died"

    def make(number: int) -> kn.Samples:
        if number == 21 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return samples(number)

    run = simulate(federation(), tmp_path, kn.Population.of(make, size=45), engine=kn.OnRay(actors=1))
    assert died.exists()
    assert run.digest == alone(federation(), tmp_path).digest


def test_a_client_of_which_actors_die_is_named_in_one_line(cluster, tmp_path):
    def make(number: int) -> kn.Samples:
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return samples(number)

    with pytest.raises(kn.Unavailable, match=r"3 actors were lost while they trained client 4 in round 1: [^\n]*$"):
        simulate(federation(), tmp_path, kn.Population.of(make, size=9))


class Killed(Quiet):
    def closed(self, record):
        if record.round == 2:
            raise KeyboardInterrupt


def test_a_run_that_was_cut_short_goes_on_elsewhere(cluster, tmp_path):
    made = federation(4, stages=(kn.Momentum(0.5),), sample=kn.Uniform(30))
    whole = alone(made, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        alone(made, tmp_path / "cut", workers=2, progress=Killed())
    (begun,) = (tmp_path / "cut").iterdir()
    assert simulate(made, tmp_path / "cut", resume=begun.name).digest == whole.digest


def failing(number: int) -> kn.Samples:
    made = samples(number)
    return kn.Samples(made.inputs * float("nan"), made.targets) if number == 7 else made


def test_a_failing_client_fails_as_in_one_process(cluster, tmp_path):
    population = kn.Population.of(failing, size=30)
    one, run = alone(federation(), tmp_path, population), simulate(federation(), tmp_path, population)
    assert [record.participants for record in one.history] == [record.participants for record in run.history]
    assert "loss is nan" in {part.client: part.reason for part in run.history[0].participants}["7"]


def test_errors_are_those_of_one_process(cluster, tmp_path):
    none = kn.Population.of(lambda number: None if number == 3 else samples(number), size=9)
    with pytest.raises(kn.AdmissionError, match="client 3: NoneType is no data set"):
        simulate(federation(), tmp_path, none)
    fault = kn.Population.of(lambda number: 1 / (number - 3) and samples(number), size=9)
    with pytest.raises(kn.ClientFailed, match="client 3, round 1: ZeroDivisionError"):
        simulate(federation(), tmp_path, fault)


def test_what_cannot_be_is_refused(cluster, tmp_path):
    with pytest.raises(kn.AdmissionError, match="0 actors cannot train"):
        kn.OnRay(actors=0)
    with pytest.raises(kn.AdmissionError, match="0 CPUs and 0 GPUs; give it num_cpus=1"):
        kn.OnRay(num_cpus=0)
    with pytest.raises(kn.AdmissionError, match="room for 0 actors of 1 CPUs and 1 GPUs"):
        simulate(federation(), tmp_path, engine=kn.OnRay(num_gpus=1))
    with pytest.raises(kn.AdmissionError, match=r"room for 2 actors .* not 3; ask for fewer"):
        simulate(federation(), tmp_path, engine=kn.OnRay(actors=3))
    lock = threading.Lock()
    with pytest.raises(kn.AdmissionError, match="cannot send"):
        simulate(federation(), tmp_path, kn.Population.of(lambda number: lock and samples(number), size=9))


def command(folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = [*CLI, str(APP), "--clients", "5", "--json", "--runs", str(folder), *more]
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        arguments, env=clean | environment, capture_output=True, text=True, timeout=240, cwd=folder, check=False
    )


def test_an_app_on_the_cluster_of_ray_address(cluster, tmp_path):
    one = command(tmp_path, "--rounds", "2")
    done = command(tmp_path, "--rounds", "2", "--engine", "ray", RAY_ADDRESS=cluster.address)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == json.loads(one.stdout)["digest"]
    assert len(done.stderr.splitlines()) == len(one.stderr.splitlines()), done.stderr
    assert any(node["Alive"] for node in ray.nodes()), "a cluster that was there stays"


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path):
    done = command(tmp_path, "--engine", "ray", RAY_ADDRESS="nowhere")
    assert done.returncode == 4
    assert "error: the Ray cluster nowhere does not answer" in done.stderr.splitlines()[-1]


def test_without_the_extra_the_cure_is_named(tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError")
    done = command(tmp_path, "--engine", "ray", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "error: Ray is not installed; pip install 'koinon[ray]', or train with --engine local",
    )


def test_a_ray_that_was_started_here_is_quiet_and_ends_with_the_run(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, psutil, torch
        import koinon as kn
        from koinon.view.progress import Quiet

        def make(number):
            return kn.Samples(torch.ones(4, 2) * number, torch.ones(4, 1))

        made = kn.Federation(kn.TorchLearner(torch.nn.Linear(2, 1), torch.nn.MSELoss()), kn.fedavg(), 2)
        crowd = kn.Population.of(make, size=5)
        runs = {str(tmp_path)!r}
        run = kn.simulate(made, crowd, runs=runs, progress=Quiet(), engine=kn.OnRay(actors=1))
        left = [child.name() for child in psutil.Process().children(recursive=True)]
        one = kn.simulate(made, crowd, runs=runs, progress=Quiet())
        print(run.digest == one.digest, left)
        """)
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    arguments = [sys.executable, "-W", "error::FutureWarning", str(script)]
    done = subprocess.run(arguments, env=clean, capture_output=True, text=True, timeout=240, check=False)
    assert (done.stdout, done.stderr) == ("True []\n", "")
