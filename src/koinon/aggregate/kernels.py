"""Means of the middle values of each column, by a sorting network over blocks of columns that fit the cache.

By numba where it is installed, by torch elsewhere; both do the same comparisons. Measured on one core, a million columns:
see `python -m benchmarks.rules`.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from koinon.aggregate.network import BOTH, LEAST, Network, network, sorting

COLUMNS = 8192
"""Columns at a time in torch: 32 kB for a row. Half or twice as many are slower."""

LANES = 64
"""Columns at a time in numba: 25 kB for a hundred rows."""

_Compiled: TypeAlias = Callable[..., None]


def middle_mean(rows: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """The mean of the values of rank `low` .. `high - 1` of each column; float32 `[B]`.

    Args:
        rows: Float32 `[n, B]`, finite.
    """
    compiled = _numba()
    if compiled is None or rows.device.type != "cpu":
        return middle_mean_torch(rows, low, high)
    steps = network(len(rows), low, high)
    out = torch.empty(rows.shape[1])
    first, second, kind = (_array(column) for column in (steps.first, steps.second, steps.kind))
    compiled(rows.detach().numpy(), first, second, kind, low, high, out.numpy())
    return out


def middle_mean_torch(rows: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """The same by torch, on any device."""
    out = torch.empty(rows.shape[1], device=rows.device)
    for start in range(0, rows.shape[1], COLUMNS):
        stop = min(start + COLUMNS, rows.shape[1])
        ordered = _run(network(len(rows), low, high), rows[:, start:stop])
        total = torch.zeros(stop - start, dtype=torch.float64, device=rows.device)
        for row in ordered[low:high]:
            total += row
        out[start:stop] = total / (high - low)
    return out


def in_order(rows: torch.Tensor) -> torch.Tensor:
    """Each column sorted; float32 `[n, B]`."""
    return torch.stack(_run(sorting(len(rows)), rows))


def _run(steps: Network, rows: torch.Tensor) -> list[torch.Tensor]:
    held = list(rows.clone())
    spare = torch.empty_like(held[0])
    for first, second, kind in zip(steps.first, steps.second, steps.kind, strict=True):
        if kind == BOTH:
            torch.minimum(held[first], held[second], out=spare)
            torch.maximum(held[first], held[second], out=held[second])
            held[first], spare = spare, held[first]
        elif kind == LEAST:
            torch.minimum(held[first], held[second], out=held[first])
        else:
            torch.maximum(held[first], held[second], out=held[second])
    return held


@functools.cache
def _numba() -> _Compiled | None:
    """The compiled kernel; None where numba is not installed."""
    try:
        from numba import njit
    except ImportError:
        return None
    compiled: _Compiled = njit(cache=True, nogil=True)(_columns)
    return compiled


@functools.lru_cache(maxsize=256)
def _array(column: tuple[int, ...]) -> npt.NDArray[np.int64]:
    return np.array(column, dtype=np.int64)


def _columns(
    rows: npt.NDArray[np.float32],
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    kind: npt.NDArray[np.int64],
    low: int,
    high: int,
    out: npt.NDArray[np.float32],
) -> None:
    """What numba compiles: `LANES` columns after `LANES` columns."""
    count, columns = rows.shape
    held = np.zeros((count, LANES), dtype=np.float32)
    total = np.zeros(LANES, dtype=np.float64)
    for start in range(0, columns, LANES):
        width = min(LANES, columns - start)
        for row in range(count):
            held[row, :width] = rows[row, start : start + width]
        for step in range(len(first)):
            one, other, what = first[step], second[step], kind[step]
            for lane in range(LANES):
                a, b = held[one, lane], held[other, lane]
                less, more = (a, b) if a < b else (b, a)
                if what != 2:
                    held[one, lane] = less
                if what != 1:
                    held[other, lane] = more
        total[:] = 0.0
        for row in range(low, high):
            for lane in range(LANES):
                total[lane] += held[row, lane]
        for lane in range(width):
            out[start + lane] = total[lane] / (high - low)
