"""Robust rules on a million coordinates, one thread, against a plain sum over the updates and against byzfl.

Every rule is called in turn with its baselines, and its memory is what the process needs beyond what it had before.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import koinon as kn
from benchmarks import byzfl
from benchmarks.figures import Figure
from koinon.aggregate import kernels
from koinon.aggregate.kernels import middle_mean_torch
from koinon.core.rng import generator

LENGTH = 1_000_000
MOST_MIB = 64.0


def measure(folder: Path, quick: bool) -> list[Figure]:
    torch.set_num_threads(1)
    length, counts, turns = (10_000, (20,), 1) if quick else (LENGTH, (20, 100), 3)
    return [figure for count in counts for figure in _measured(count, length, turns)]


def _measured(n: int, length: int, turns: int) -> list[Figure]:
    updates, f, theirs = torch.randn(n, length, generator=generator(0, "rules")), n // 5, byzfl.rules()
    array, middle = updates.numpy(), ((n - 1) // 2, n // 2 + 1)
    rivals: dict[str, Callable[[], object]] = {
        "sum": lambda: array.sum(0),
        "median": lambda: kn.Median()(updates),
        "trimmed mean": lambda: kn.TrimmedMean(f)(updates),
        "median by torch": lambda: middle_mean_torch(updates, *middle),
        "trimmed mean by torch": lambda: middle_mean_torch(updates, f, n - f),
        "Krum": lambda: kn.Krum(f)(updates),
        "geometric median": lambda: kn.GeometricMedian()(updates),
        "byzfl median": lambda: theirs.Median()(updates),
        "byzfl Krum": lambda: theirs.Krum(f=f)(updates),
        "byzfl geometric median": lambda: theirs.GeometricMedian()(updates),
    }
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    most: dict[str, float] = dict.fromkeys(rivals, 0.0)
    for turn in range(turns + 1):  # the first warms up
        for name, rival in rivals.items():
            if turn == 0 and name.startswith("byzfl"):
                continue
            before = _forget_peak()
            began = time.perf_counter()
            rival()
            if turn > 0:
                taken[name].append(1000 * (time.perf_counter() - began))
                most[name] = max(most[name], _peak() - before)
    ms = {name: statistics.median(each) for name, each in taken.items()}
    fast = "numba" if kernels._numba() is not None else "torch"
    limit = 8.0 if fast == "numba" else 25.0
    ours = ("median", "trimmed mean", "median by torch", "trimmed mean by torch")
    found = []
    for name, bound in zip(ours, (limit, limit, 25.0, 25.0), strict=True):
        by = f" by {fast}" if " by " not in name else ""
        met = ms[name] <= bound * ms["sum"]
        found.append(Figure(f"{n} updates: {name}{by}, to a sum", ms[name], "ms", ms["sum"], f"<= {bound:.0f}x", met))
    for name, rival, times in (
        ("median", "byzfl median", 15.0),
        ("Krum", "byzfl Krum", 2.5),
        ("geometric median", "byzfl geometric median", 5.0),
    ):
        asked = n == 100 or name != "median"
        met = ms[name] * times <= ms[rival] if asked else None
        target = f"<= 1/{times:g}" if asked else ""
        found.append(Figure(f"{n} updates: {name}, to byzfl's", ms[name], "ms", ms[rival], target, met))
    extra = max(most[name] for name in rivals if not name.startswith("byzfl"))
    found.append(Figure(f"{n} updates: most memory of any rule", extra, "MiB", None, "<= 64 MiB", extra <= MOST_MIB))
    return found


def _forget_peak() -> float:
    """Forget the greatest memory so far; returns what there is now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
