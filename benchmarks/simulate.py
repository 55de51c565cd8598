"""Simulated rounds against a plain loop: 1,000 clients of 60 Fashion-MNIST images, 100 a round, MLP 784-200-10.

SGD 0.05, batches of 20, one epoch. The loop keeps one model, takes its gradients by `autograd.grad` and steps by
`_foreach_add_`; it samples, averages and does nothing else. One thread each, in turns.
"""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import koinon as kn
from benchmarks.figures import Figure
from koinon.core.errors import Unavailable
from koinon.view.progress import Quiet

CLIENTS, COHORT, EXAMPLES = 1000, 100, 60
BATCH, RATE = 20, 0.05


def measure(folder: Path, quick: bool) -> list[Figure]:
    cohort, turns, rounds = (5, 2, 1) if quick else (COHORT, 4, 5)
    samples, source = _samples(quick)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loop, koinon = _loop(samples, cohort), _koinon(samples, cohort, folder)
        seconds: dict[str, list[float]] = {"loop": [], "koinon": []}
        for turn in range(turns):
            seconds["loop"] += loop(rounds)[turn == 0 :]  # the very first round warms up
            seconds["koinon"] += koinon(rounds)[turn == 0 :]
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (1000 * statistics.median(seconds[name]) for name in ("koinon", "loop"))
    return [Figure(f"a round of {cohort} of {CLIENTS:,} clients, {source}", ours, "ms", theirs)]


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def _samples(quick: bool) -> tuple[list[kn.Samples], str]:
    """Everyone's images, in memory; random ones where Fashion-MNIST cannot be had, which take as long."""
    try:
        if quick:
            raise Unavailable("")
        data = kn.data.load("fashion-mnist").train
        inputs, targets = data.batch(torch.randperm(len(data), generator=torch.Generator().manual_seed(0)))
        source = "Fashion-MNIST"
    except Unavailable:
        rng = torch.Generator().manual_seed(0)
        inputs = torch.rand(CLIENTS * EXAMPLES, 1, 28, 28, generator=rng)
        targets = torch.randint(10, (len(inputs),), generator=rng)
        source = "random images"
    starts = range(0, CLIENTS * EXAMPLES, EXAMPLES)
    return [kn.Samples(inputs[at : at + EXAMPLES], targets[at : at + EXAMPLES]) for at in starts], source


def _koinon(samples: list[kn.Samples], cohort: int, folder: Path) -> Callable[[int], list[float]]:
    population = kn.Population.of(samples)
    sgd = functools.partial(torch.optim.SGD, lr=RATE)
    learner = kn.TorchLearner(model, nn.CrossEntropyLoss(), sgd, batch_size=BATCH)

    def rounds(count: int) -> list[float]:
        federation = kn.Federation(learner, kn.fedavg(sample=kn.Uniform(cohort)), count)
        run = kn.simulate(federation, population, runs=folder / "runs", progress=Quiet())
        return [record.seconds for record in run.history]

    return rounds


def _loop(samples: list[kn.Samples], cohort: int) -> Callable[[int], list[float]]:
    torch.manual_seed(0)
    module, loss = model(), nn.CrossEntropyLoss()
    weights = list(module.parameters())
    rng = torch.Generator().manual_seed(0)

    def round() -> None:
        start = [weight.detach().clone() for weight in weights]
        total = [torch.zeros_like(weight) for weight in start]
        for client in torch.randperm(len(samples), generator=rng)[:cohort].tolist():
            with torch.no_grad():
                torch._foreach_copy_(weights, start)
            for batch in torch.randperm(EXAMPLES, generator=rng).split(BATCH):
                inputs, targets = samples[client].batch(batch)
                gradients = torch.autograd.grad(loss(module(inputs), targets), weights)
                with torch.no_grad():
                    torch._foreach_add_(weights, gradients, alpha=-RATE)
            with torch.no_grad():
                torch._foreach_add_(total, weights, alpha=1 / cohort)
        with torch.no_grad():
            torch._foreach_copy_(weights, total)

    def rounds(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            round()
            seconds.append(time.perf_counter() - began)
        return seconds

    return rounds
