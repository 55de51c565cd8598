"""Training with `DPSGD` against Opacus: one epoch on 4,096 random images of 28 x 28, the usual small CNN.

Poisson sampling at 256 / 4,096, clipping and noise on both sides, SGD, one thread each, in turns. Either holds the
gradients of a whole sample at a time; Opacus draws its noise from torch's generator.
"""

import functools
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import koinon as kn
from benchmarks.figures import Figure
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.learn.dpsgd import DPSGD
from koinon.learn.learner import LocalTask

IMAGES, SAMPLE = 4096, 256
NOISE_MULTIPLIER, CLIP_NORM, RATE = 1.0, 1.0, 0.1
MOST = 1.05


def measure(folder: Path, quick: bool) -> list[Figure]:
    images, turns = (SAMPLE, 1) if quick else (IMAGES, 7)
    rng = torch.Generator().manual_seed(0)
    samples = kn.Samples(torch.rand(images, 1, 28, 28, generator=rng), torch.randint(10, (images,), generator=rng))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Opacus, on its generator and on hooks that fire at the first layer
            ways = {"koinon": _koinon(samples), "opacus": _opacus(samples)}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(turns + 1):
                for name, epoch in ways.items():
                    began = time.perf_counter()
                    epoch()
                    if turn > 0:  # the first warms up
                        seconds[name].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (1000 * statistics.median(seconds[name]) for name in ("koinon", "opacus"))
    what = f"an epoch of DP-SGD on {images:,} images"
    return [Figure(what, ours, "ms", theirs, f"<= {MOST}x", ours <= MOST * theirs)]


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def _koinon(samples: kn.Samples) -> Callable[[], None]:
    dp = DPSGD(NOISE_MULTIPLIER, CLIP_NORM, SAMPLE / len(samples))
    sgd = functools.partial(torch.optim.SGD, lr=RATE)
    learner = kn.TorchLearner(model, nn.CrossEntropyLoss(), sgd, batch_size=2 * SAMPLE, dp=dp)
    start = learner.initial(0)

    def epoch() -> None:
        learner.train(start, samples, LocalTask(1, noise=Noise.fresh()), generator(0, "train"))

    return epoch


def _opacus(samples: kn.Samples) -> Callable[[], None]:
    module, loss = model(), nn.CrossEntropyLoss()
    module, optimizer, loader = PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=RATE),
        data_loader=DataLoader(TensorDataset(samples.inputs, samples.targets), batch_size=SAMPLE),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
    )

    def epoch() -> None:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss(module(inputs), targets).backward()
            optimizer.step()

    return epoch
