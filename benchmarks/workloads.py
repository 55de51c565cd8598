"""Three ways to train on Fashion-MNIST, each as a plain loop and as a federation that does the same.

    W1  1,000 clients of 60 images, 100 a round, batches of 20, 784-200-10
    W2  the same clients, 20 a round, two convolutions and two dense layers (1.66 million parameters)
    W3  10 clients of 6,000 images, all of them, batches of 64, 784-200-10

SGD 0.05, one epoch. The loop keeps one model, takes its gradients by `autograd.grad` and steps by `_foreach_add_`; it
samples, averages and does nothing else.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import koinon as kn
from koinon.core.errors import Unavailable
from koinon.run.engine import InProcess, MakeEngine
from koinon.view.progress import Quiet

RATE = 0.05

Rounds = Callable[[int], list[float]]
"""Trains so many rounds, and tells how many seconds each took."""


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Who trains what.

    Attributes:
        name: What it is called.
        clients: All of them.
        examples: Images of each.
        cohort: Clients of a round.
        batch: Images of a step.
        model: Makes what is trained.
    """

    name: str
    clients: int
    examples: int
    cohort: int
    batch: int
    model: Callable[[], nn.Module]

    def federation(self, rounds: int) -> kn.Federation:
        """It as a federation of so many rounds, which evaluates nothing."""
        sgd = functools.partial(torch.optim.SGD, lr=RATE)
        learner = kn.TorchLearner(self.model, nn.CrossEntropyLoss(), sgd, batch_size=self.batch)
        strategy = kn.fedavg(sample=kn.Uniform(self.cohort))
        return kn.Federation(learner, strategy, rounds, kn.Evaluation(federated=False))


W1 = Workload("W1", 1000, 60, 100, 20, mlp)
W2 = Workload("W2", 1000, 60, 20, 20, cnn)
W3 = Workload("W3", 10, 6000, 10, 64, mlp)


def images(quick: bool) -> tuple[kn.Samples, str]:
    """60,000 images in memory; random ones where Fashion-MNIST cannot be had, which take as long."""
    rng = torch.Generator().manual_seed(0)
    try:
        if quick:
            raise Unavailable("")
        data = kn.data.load("fashion-mnist").train
        return kn.Samples(*data.batch(torch.randperm(len(data), generator=rng))), "Fashion-MNIST"
    except Unavailable:
        inputs = torch.rand(60_000, 1, 28, 28, generator=rng)
        return kn.Samples(inputs, torch.randint(10, (len(inputs),), generator=rng)), "random images"


def shares(workload: Workload, data: kn.Samples) -> list[kn.Samples]:
    """Each client's images."""
    starts = range(0, workload.clients * workload.examples, workload.examples)
    ends = [(at, at + workload.examples) for at in starts]
    return [kn.Samples(data.inputs[first:last], data.targets[first:last]) for first, last in ends]


def simulated(
    workload: Workload, population: kn.Population, folder: Path, workers: int, engine: MakeEngine = InProcess
) -> Rounds:
    """Koinon's rounds; each call is a run of its own, whose workers are made anew."""

    def rounds(count: int) -> list[float]:
        made = workload.federation(count)
        run = kn.simulate(made, population, 0, workers, runs=folder / "runs", engine=engine, progress=Quiet())
        return [record.seconds for record in run.history]

    return rounds


def looped(workload: Workload, samples: Sequence[kn.Samples], threads: int) -> Rounds:
    """The plain loop's rounds."""
    torch.manual_seed(0)
    module, loss = workload.model(), nn.CrossEntropyLoss()
    weights, rng = list(module.parameters()), torch.Generator().manual_seed(0)

    def train(client: kn.Samples) -> None:
        for batch in torch.randperm(len(client), generator=rng).split(workload.batch):
            inputs, targets = client.batch(batch)
            gradients = torch.autograd.grad(loss(module(inputs), targets), weights)
            with torch.no_grad():
                torch._foreach_add_(weights, gradients, alpha=-RATE)

    def round() -> None:
        start = [weight.detach().clone() for weight in weights]
        total = [torch.zeros_like(weight) for weight in start]
        for client in torch.randperm(len(samples), generator=rng)[: workload.cohort].tolist():
            with torch.no_grad():
                torch._foreach_copy_(weights, start)
            train(samples[client])
            with torch.no_grad():
                torch._foreach_add_(total, weights, alpha=1 / workload.cohort)
        with torch.no_grad():
            torch._foreach_copy_(weights, total)

    def rounds(count: int) -> list[float]:
        before, seconds = torch.get_num_threads(), []
        torch.set_num_threads(threads)
        for _ in range(count):
            began = time.perf_counter()
            round()
            seconds.append(time.perf_counter() - began)
        torch.set_num_threads(before)
        return seconds

    return rounds
