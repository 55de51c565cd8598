"""Clipping and cryptographic noise on 25 million parameters, against one pass that multiplies the same vector in place.

All of it with the threads that torch takes by itself, in turns, so that what else the machine does hits all alike.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.figures import Figure
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.types import Spec, Update, Vector
from koinon.update.clip import Clip
from koinon.update.stage import Context

LENGTH = 25_000_000
MOST = 4.0


def measure(folder: Path, quick: bool) -> list[Figure]:
    length, turns = (100_000, 3) if quick else (LENGTH, 15)
    vector = torch.randn(length, generator=generator(0, "benchmark"))
    noise = Noise.fresh()
    context = Context(1, Spec(), Layout.of(nn.Linear(1, 1)), lambda: generator(0, "benchmark"), noise)

    def clipped() -> Vector:
        _, update = Clip(1.0).on_client({}, Update.of(vector, 1), context)
        return update.delta

    rivals: dict[str, Callable[[], object]] = {
        "pass": lambda: vector.mul_(-1.0),
        "both": lambda: noise.add_gaussian(clipped(), 1.0),
        "clip": clipped,
        "gaussian": lambda: noise.add_gaussian(vector, 1e-3),
        "laplace": lambda: noise.add_laplace(vector, 1e-3),
        "randn": lambda: vector.add_(torch.randn(length), alpha=1e-3),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(turns):
        for name, rival in rivals.items():
            began = time.perf_counter()
            rival()
            seconds[name].append(time.perf_counter() - began)
    taken = {name: 1000 * statistics.median(each[1:]) for name, each in seconds.items()}  # the first warms up
    base, size = taken["pass"], f"{length:,} parameters"
    met = taken["both"] <= MOST * base
    return [
        Figure(f"{size}: clip and Gaussian noise", taken["both"], "ms", base, f"<= {MOST:.0f}x a pass", met),
        Figure(f"{size}: the clip alone", taken["clip"], "ms", base),
        Figure(f"{size}: the Gaussian noise alone", taken["gaussian"], "ms", base),
        Figure(f"{size}: Laplace noise alone", taken["laplace"], "ms", base),
        Figure(f"{size}: torch.randn, not cryptographic", taken["randn"], "ms", base),
    ]
