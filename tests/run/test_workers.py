"""Worker processes: the bits of one process, whatever is trained, whoever dies, however many there are."""

import functools
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import koinon as kn
from koinon.core.types import ClientId, Update
from koinon.run import pool, schedule
from koinon.run.chunks import LARGEST, Chunk, chunks, costliest, cut
from koinon.run.engine import InProcess
from koinon.run.memory import Memory
from koinon.view.progress import Quiet

QUIET = kn.Evaluation(federated=False)
APP = Path(__file__).parents[1] / "system" / "apps" / "small.py"


def samples(number: int) -> kn.Samples:
    rng = torch.Generator().manual_seed(number)
    inputs = torch.randn(4 + number % 5, 6, generator=rng)
    return kn.Samples(inputs, (inputs.sum(1) > 0).long())


CROWD = kn.Population.of(samples, size=45)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def learner(**more) -> kn.TorchLearner:
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    return kn.TorchLearner(model, nn.CrossEntropyLoss(), sgd, batch_size=3, **more)


def federation(rounds: int = 3, **strategy) -> kn.Federation:
    return kn.Federation(learner(), kn.fedavg(**strategy), rounds, QUIET)


def simulate(made: kn.Federation, folder: Path, workers: int, population=CROWD, **more) -> kn.Run:
    return kn.simulate(made, population, workers=workers, runs=folder, **{"progress": Quiet()} | more)


RUNS = {
    "the mean": (federation(sample=kn.Uniform(33)), InProcess),
    "batches with a correction": (kn.Federation(learner(), kn.fedprox(mu=0.1), 3, QUIET), InProcess),
    "memories of a stage": (federation(stages=(kn.Momentum(0.5),), sample=kn.Uniform(30)), InProcess),
    "memories of a codec": (federation(codec=kn.ErrorFeedback(kn.TopK(0.2) >> kn.Quantize(4))), InProcess),
    "sizes that vary": (federation(codec=kn.Quantize(8) >> kn.Zstd()), InProcess),
    "noise by clients": (federation(stages=(kn.Clip(0.5), kn.Local(kn.GaussianNoise(1.0)))), InProcess),
    "noise by the server": (federation(stages=(kn.AdaptiveClip(0.5), kn.GaussianNoise(1.0, cohort=40))), InProcess),
    "a robust rule": (federation(reducer=kn.Median()), InProcess),
    "a robust rule and liars who see": (federation(reducer=kn.Median()), kn.Attacked(kn.attack.ALIE(), liars=5)),
    "liars with poisoned data": (federation(stages=()), kn.Attacked(kn.attack.LabelFlip(2), liars=20)),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_bits_do_not_depend_on_the_number_of_workers(name, tmp_path, monkeypatch):
    made, engine = RUNS[name]
    alone = simulate(made, tmp_path, 1, engine=engine)
    for workers, held in ((2, 0), (4, schedule.HELD_CHUNKS)):  # memory that is used again in the round, and that is not
        monkeypatch.setattr(schedule, "HELD_CHUNKS", held)
        run = simulate(made, tmp_path, workers, engine=engine)
        assert [record.digest for record in run.history] == [record.digest for record in alone.history]
        assert [record.participants for record in run.history] == [record.participants for record in alone.history]


class Killed(Quiet):
    def closed(self, record):
        if record.round == 2:
            raise KeyboardInterrupt


def test_a_run_that_was_cut_short_goes_on_with_another_number_of_workers(tmp_path):
    made = federation(4, stages=(kn.Momentum(0.5),), sample=kn.Uniform(30))
    whole = simulate(made, tmp_path / "whole", 1)
    with pytest.raises(KeyboardInterrupt):
        simulate(made, tmp_path / "cut", 4, progress=Killed())
    (begun,) = (tmp_path / "cut").iterdir()
    assert simulate(made, tmp_path / "cut", 2, resume=begun.name).digest == whole.digest


def test_the_processes_are_others_few_and_end_with_the_run(tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()

    def make(number: int) -> kn.Samples:
        (pids / str(os.getpid())).touch()
        return samples(number)

    simulate(federation(), tmp_path, 2, kn.Population.of(make, size=45))
    seen = {int(path.name) for path in pids.iterdir()}
    assert len(seen) == 2, "long-lived: the same two in every round"
    assert os.getpid() not in seen
    assert not any(Path(f"/proc/{pid}").exists() for pid in seen)
    assert not multiprocessing.active_children()


def test_a_dead_workers_clients_are_trained_again_and_the_bits_stay(tmp_path):
    died = tmp_path / "died"

    def make(number: int) -> kn.Samples:
        if number == 21 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return samples(number)

    made = federation(stages=(kn.Momentum(0.5),))
    run = simulate(made, tmp_path, 3, kn.Population.of(make, size=45))
    assert died.exists()
    assert run.digest == simulate(made, tmp_path, 1).digest
    assert all(len(record.participants) == 45 for record in run.history)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_client_of_which_workers_die_is_named_in_one_line(workers, tmp_path):
    def make(number: int) -> kn.Samples:
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return samples(number)

    with pytest.raises(kn.Unavailable, match=r"killed by signal 9 while it trained client 4 in round 1; .*workers=1"):
        simulate(federation(), tmp_path, workers, kn.Population.of(make, size=9))
    assert not multiprocessing.active_children()


def failing(number: int) -> kn.Samples:
    made = samples(number)
    return kn.Samples(made.inputs * float("nan"), made.targets) if number == 7 else made


def test_a_failing_client_fails_as_in_one_process(tmp_path):
    made, population = federation(), kn.Population.of(failing, size=30)
    one, two = (simulate(made, tmp_path, workers, population) for workers in (1, 2))
    assert [record.participants for record in one.history] == [record.participants for record in two.history]
    assert "loss is nan" in {part.client: part.reason for part in two.history[0].participants}["7"]


def test_data_that_is_none_is_refused_as_in_one_process(tmp_path):
    population = kn.Population.of(lambda number: None if number == 3 else samples(number), size=9)
    with pytest.raises(kn.AdmissionError, match="client 3: NoneType is no data set"):
        simulate(federation(), tmp_path, 2, population)


def test_a_fault_that_nobody_expected_is_one_line_with_the_client(tmp_path):
    population = kn.Population.of(lambda number: 1 / (number - 3) and samples(number), size=9)
    with pytest.raises(kn.ClientFailed, match="client 3, round 1: ZeroDivisionError"):
        simulate(federation(), tmp_path, 2, population)


def test_workers_do_not_outlive_a_killed_simulation(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import koinon as kn
        from test_workers import federation, samples

        def make(number):
            os.write(1, f"{{os.getpid()}}\\n".encode())  # at once, so that two workers' lines never mix
            time.sleep(0.2)
            return samples(number)

        kn.simulate(federation(), kn.Population.of(make, size=9), workers=2, runs={str(tmp_path)!r})
        """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout is not None
        workers: set[int] = set()
        while len(workers) < 2:
            line = study.stdout.readline().strip()
            workers |= {int(line)} if line else set()
        study.kill()
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            time.sleep(0.05)


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    with pytest.raises(kn.AdmissionError, match="0 workers cannot train"):
        simulate(federation(), tmp_path, 0)
    with pytest.raises(kn.AdmissionError, match="decides by itself"):
        simulate(federation(), tmp_path, 2, engine=lambda *arguments: InProcess(*arguments))
    monkeypatch.setattr(pool.sys, "platform", "darwin")
    with pytest.raises(kn.AdmissionError, match=r"need Linux.*workers=1"):
        simulate(federation(), tmp_path, 2)


@given(st.integers(0, 1200), st.integers(1, 10_000_000))
def test_chunks_are_the_cohort_in_its_order_enough_for_every_worker_and_fit_the_cache(count, length):
    cohort = [str(number) for number in range(count)]
    made = cut(cohort, length)
    assert all(len(chunk) == 1 or len(chunk) * length <= LARGEST for chunk in made)
    assert [client for chunk in made for client in chunk] == cohort
    assert len({len(chunk) for chunk in made[:-1]}) <= 1
    assert len(made) >= min(count, 10)


def test_the_costliest_clients_come_first_where_sizes_are_known():
    inputs = torch.randn(200, 6)
    data = kn.DataSet.of(kn.Samples(inputs, torch.arange(200) % 2))
    skewed = data.split(kn.Dirichlet(0.2), clients=8, seed=0)
    for client in skewed.ids:
        assert skewed.size(client) == len(skewed[client].train)
    made = chunks(skewed.ids, 1000, skewed)
    sizes = {client: len(skewed[client].train) for client in skewed.ids}
    assert made[costliest(made, range(8))].clients == (max(sizes, key=lambda client: sizes[client]),)
    assert CROWD.size("3") is None, "nobody can know without making the data"
    assert chunks(CROWD.ids[:3], 1000, CROWD) == [Chunk((str(number),), 1) for number in range(3)]


def test_what_lies_in_a_room_is_not_moved_and_nothing_else_is_written_over_it():
    memory = Memory()
    memory.write([torch.arange(1000)])
    first = memory.room(2, 3).copy_(torch.arange(6).view(2, 3))
    second = memory.room(1, 5000).fill_(7)  # grows: the first is seen by an earlier map
    other = torch.tensor([2.5])
    places = memory.write([first[1], other, second[0], b"abc"])
    assert places[0].start == 12 and memory.tensor(places[0]).data_ptr() % 64 == 12
    assert [memory.tensor(place).tolist() for place in places[:2]] == [[3, 4, 5], [2.5]]
    assert torch.equal(memory.tensor(places[2]), torch.full((5000,), 7.0))
    assert bytes(memory.bytes(places[3])) == b"abc"
    (place,) = memory.write([other])
    assert place.start == 0, "a room lasts until the next write"
    assert memory.write([memory.room(1, 4)])[0].start == 0, "or memory would grow for ever"
    memory.room(1, 9)
    assert memory.write([other])[0].start == 0, "a room that nobody used takes no place"


def test_shared_memory_gives_back_what_was_written_and_grows():
    memory, other = Memory(), Memory(8)
    items = [torch.arange(5), torch.tensor(2.5), torch.empty(0, 3), torch.ones(2, 2, dtype=torch.bfloat16), b"abc"]
    for _ in range(2):  # the second time over what is there
        places = memory.write(items)
        for item, place in zip(items[:-1], places[:-1], strict=True):
            assert torch.equal(memory.tensor(place), item)
            assert memory.tensor(place).dtype == item.dtype
        assert bytes(memory.bytes(places[-1])) == b"abc"
    (place,) = other.write([torch.arange(10_000)])
    assert torch.equal(other.tensor(place), torch.arange(10_000))


class Nothing:
    """A learner that only says who trained it."""

    def __init__(self, layout):
        self.layout = layout

    def initial(self, seed: int) -> torch.Tensor:
        return torch.zeros(self.layout.length)

    def train(self, start, data, task, rng) -> Update:
        return Update.of(torch.full((self.layout.length,), float(data.inputs[0, 0])), 1)

    def evaluate(self, model, data):
        return {}


def test_more_results_than_may_wait_are_added_up_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "HELD_BYTES", 1)
    order: list[ClientId] = []

    class Order(Quiet):
        def replied(self, round, node, outcome, reason=""):
            order.append(node)

    made = kn.Federation(Nothing(learner().layout), kn.fedavg(), 1, QUIET)
    run = simulate(made, tmp_path, 2, progress=Order())
    assert order == list(CROWD.ids)
    assert run.digest == simulate(made, tmp_path, 1).digest


def test_an_app_on_the_command_line(tmp_path):
    def digest(workers: int) -> str:
        command = ["-m", "koinon.cli", "simulate", APP, "--clients", 5, "--workers", workers, "--runs", tmp_path]
        done = subprocess.run(
            [sys.executable, *map(str, command)], check=True, capture_output=True, text=True, timeout=240
        )
        return next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("digest"))

    assert digest(1) == digest(2)


def test_a_run_says_how_its_clients_are_trained(tmp_path):
    def said(made: kn.Federation) -> list[str]:
        run = simulate(made, tmp_path, 2)
        assert run.history[-1].round == 3
        with sqlite3.connect(run.path / "run.db") as database:
            rows = database.execute("SELECT fields FROM audit WHERE event = 'clients are trained'")
            return [json.loads(fields)["how"] for (fields,) in rows]

    assert said(federation()) == ["4 at a time, at once where they hold equally many examples"]
    assert said(federation(sample=kn.Uniform(19))) == ["one by one"]
    assert said(kn.Federation(learner(batched=False), kn.fedavg(), 3, QUIET)) == ["one by one"]


def test_training_at_once_is_used_and_close_to_one_by_one(tmp_path):
    at_once, alone = (
        simulate(kn.Federation(learner(batched=batched), kn.fedavg(), 1, QUIET), tmp_path, 2)
        for batched in (True, False)
    )
    start = learner().initial(0)
    assert at_once.digest != alone.digest
    assert (at_once.vector - alone.vector).norm() <= 1e-5 * (alone.vector - start).norm()
