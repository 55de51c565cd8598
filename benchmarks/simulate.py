"""Simulated rounds against a plain loop, in turns: see `benchmarks.workloads` for both.

Two worker processes of one thread each, against the loop on two threads, unless the line says otherwise. Memory is the sum
of all processes' proportional shares, sampled, so that what forks share counts once.
"""

import contextlib
import itertools
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import koinon as kn
from benchmarks.figures import Figure
from benchmarks.workloads import W1, W2, W3, Rounds, Workload, images, looped, shares, simulated
from koinon.core.layout import Layout
from koinon.core.types import Update
from koinon.view.progress import Quiet

WORKERS = 2


def measure(folder: Path, quick: bool) -> list[Figure]:
    data, source = images(quick)
    loads = [_small(load) for load in (W1, W2, W3)] if quick else [W1, W2, W3]
    turns, rounds = (1, 1) if quick else (4, 5)
    figures = [
        _against_the_loop(load, target, data, folder, turns, rounds if load is not W2 else min(rounds, 3), source)
        for load, target in zip(loads, (2.0, 1.1, 1.2), strict=True)
    ]
    figures += [
        _beside_another(loads[0], data, folder, turns, rounds),
        _doing_nothing(folder, quick),
        _memory(loads[0], folder, quick),
        *_populations(folder, quick),
    ]
    return figures


def _small(load: Workload) -> Workload:
    return replace(load, clients=10, cohort=min(load.cohort, 4), examples=min(load.examples, 100))


def in_turns(ways: Mapping[str, Rounds], turns: int, rounds: int) -> dict[str, float]:
    """Median seconds of each one's rounds; the first round of a turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, way) in itertools.product(range(turns), ways.items()):
        seconds[name] += way(rounds + 1)[1:]
    return {name: statistics.median(each) for name, each in seconds.items()}


def _against_the_loop(
    load: Workload, target: float, data: kn.Samples, folder: Path, turns: int, rounds: int, source: str
) -> Figure:
    samples = shares(load, data)
    ways = {
        "loop": looped(load, samples, threads=2),
        "koinon": simulated(load, kn.Population.of(samples), folder, WORKERS),
    }
    took = in_turns(ways, turns, rounds)
    met = took["loop"] >= target * took["koinon"]
    what = f"{load.name}, a round of {load.cohort} of {load.clients:,} clients, {source}"
    return Figure(what, 1000 * took["koinon"], "ms", 1000 * took["loop"], f"< {1 / target:.2f}x", met)


def _beside_another(load: Workload, data: kn.Samples, folder: Path, turns: int, rounds: int) -> Figure:
    samples = shares(load, data)
    ways = {
        "loop": looped(load, samples, threads=1),
        "koinon": simulated(load, kn.Population.of(samples), folder, WORKERS),
    }
    with _burning():
        took = in_turns(ways, turns, rounds)
    what = f"{load.name}, while another process burns a core; the loop on one thread"
    met = took["koinon"] <= took["loop"]
    return Figure(what, 1000 * took["koinon"], "ms", 1000 * took["loop"], "< 1x", met)


@contextlib.contextmanager
def _burning() -> Iterator[None]:
    burner = multiprocessing.get_context("spawn").Process(target=_burn, daemon=True)
    burner.start()
    try:
        yield
    finally:
        burner.terminate()
        burner.join()


def _burn() -> None:
    while True:
        pass


class Nothing:
    """A learner that does nothing, to see what all the rest costs."""

    def __init__(self, length: int) -> None:
        self.layout = Layout.of(nn.Linear(length, 1, bias=False))
        self.zeros = torch.zeros(length)

    def described(self) -> dict[str, object]:
        return {"length": self.layout.length}

    def initial(self, seed: int) -> torch.Tensor:
        return self.zeros.clone()

    def train(self, *arguments: object) -> Update:
        return Update.of(self.zeros, 1)

    def evaluate(self, *arguments: object) -> dict[str, object]:
        return {}


def _doing_nothing(folder: Path, quick: bool) -> Figure:
    cohort, rounds = (20, 2) if quick else (1000, 10)
    one = kn.Samples(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    strategy = kn.fedavg(sample=kn.Uniform(cohort))
    federation = kn.Federation(Nothing(1000), strategy, rounds, kn.Evaluation(federated=False))  # type: ignore[arg-type]
    population = kn.Population.of([one] * 20 * cohort)
    run = kn.simulate(federation, population, 0, WORKERS, runs=folder / "runs", progress=Quiet())
    each = 1000 * statistics.median(record.seconds for record in run.history[1:]) / cohort
    return Figure("1,000 clients that do nothing, 1,000 parameters", 1000 * each, "ms", None, "< 50 ms", each < 0.05)


def _memory(load: Workload, folder: Path, quick: bool) -> Figure:
    loop, koinon = (_peak(_work, load, way, folder, quick) for way in ("loop", "koinon"))
    met = koinon < loop + 400
    return Figure(f"{load.name}, memory of all processes at most", koinon, "MiB", loop, "< +400 MiB", met)


def _work(load: Workload, way: str, folder: Path, quick: bool) -> None:
    data, _ = images(quick)
    samples = shares(load, data)
    rounds = looped(load, samples, 2) if way == "loop" else simulated(load, kn.Population.of(samples), folder, WORKERS)
    rounds(2 if quick else 10)


def _populations(folder: Path, quick: bool) -> list[Figure]:
    few, many, cohort = (40, 100, 20) if quick else (1_000, 1_000_000, 1_000)
    load = replace(W1, clients=many, cohort=cohort)
    data, _ = images(quick)
    ways = {str(size): simulated(load, _drawn(data, size), folder, WORKERS) for size in (few, many)}
    took = in_turns(ways, 1 if quick else 3, 1 if quick else 2)
    held = [_peak(_crowd, load, size, folder, quick) for size in (few, many)]
    baseline, time, memory = 1000 * took[str(few)], 1000 * took[str(many)], held[1]
    what = f"a round of {cohort:,} of {many:,} clients, against as many of {few:,}"
    return [
        Figure(what, time, "ms", baseline, "< 1.10x", time < 1.1 * baseline),
        Figure("  memory of all processes at most", memory, "MiB", held[0], "< 1.10x", memory < 1.1 * held[0]),
    ]


def _drawn(data: kn.Samples, size: int) -> kn.Population:
    """So many clients, each of 60 images, drawn when it is its turn."""

    def make(number: int) -> kn.Samples:
        drawn = torch.randint(len(data), (60,), generator=torch.Generator().manual_seed(number))
        return kn.Samples(data.inputs[drawn], data.targets[drawn])

    return kn.Population.of(make, size=size)


def _crowd(load: Workload, size: int, folder: Path, quick: bool) -> None:
    simulated(load, _drawn(images(quick)[0], size), folder, WORKERS)(2)


def _peak(target: Callable[..., None], *arguments: object) -> float:
    """Most MiB that a process that does this, and its children, held together."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    peak = 0.0
    while process.is_alive():
        assert process.pid is not None
        peak = max(peak, sum(map(_share, _family(process.pid))))
        process.join(0.02)
    if process.exitcode:
        raise RuntimeError(f"{target.__name__} ended with {process.exitcode}")
    return peak


def _family(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(member for child in children for member in _family(int(child)))]
    return []


def _share(pid: int) -> float:
    """Proportional share of a process's memory in MiB; 0 when it is gone."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
    return 0.0
