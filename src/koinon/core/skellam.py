"""Skellam noise: whole numbers, whose sum over many is again Skellam noise, with the sum of the variances.

A Skellam of variance v is the difference of two Poissons of mean v / 2, drawn from cryptographic noise: by rejection where the
mean is large, by the table of its distribution where it is small. The draws are as exact as float64 is.

Source: Hörmann, "The transformed rejection method for generating Poisson random variables" (1993), algorithm PTRS.
"""

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from koinon.core.noise import Noise

Integers: TypeAlias = npt.NDArray[np.int64]

LARGEST = 1e14
"""Largest variance: beyond it float64 has too few digits for the rejection."""

_BLOCK = 1 << 16
_SMALL = 10.0
"""Below this mean the rejection does not hold, and a table is short."""


def skellam(noise: Noise, count: int, variance: float) -> Integers:
    """Independent draws of mean 0; int64 `[count]`.

    Args:
        noise: For this use alone.
        count: How many, >= 0.
        variance: Of each, above 0 and at most `LARGEST`.

    Raises:
        ValueError: if the variance is out of its bounds.
    """
    if not 0 < variance <= LARGEST:
        raise ValueError(f"Skellam noise needs a variance above 0 and up to {LARGEST:g}, not {variance:g}")
    drawn = np.empty(count, dtype=np.int64)
    for number, start in enumerate(range(0, count, _BLOCK)):
        block = drawn[start : start + _BLOCK]
        own = noise.of("skellam", number)
        block[:] = _poisson(own.of("plus"), len(block), variance / 2)
        block -= _poisson(own.of("minus"), len(block), variance / 2)
    return drawn


def _poisson(noise: Noise, count: int, mean: float) -> Integers:
    if mean < _SMALL:
        return np.searchsorted(_table(mean), noise.uniform(count).numpy(), side="right").astype(np.int64)
    drawn, left, attempt = np.empty(count, dtype=np.int64), np.arange(count), 0
    while len(left):
        uniforms = noise.of("attempt", attempt).uniform(2 * len(left)).numpy()
        values, taken = _tried(uniforms[: len(left)], uniforms[len(left) :], mean)
        drawn[left[taken]] = values[taken]
        left, attempt = left[~taken], attempt + 1
    return drawn


def _tried(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], mean: float
) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Candidates, and which of them are Poisson."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    u = first - 0.5
    us = 0.5 - np.abs(u)
    k = np.floor((2 * a / np.maximum(us, 2.0**-60) + b) * u + mean + 0.43)
    sure = (us >= 0.07) & (second <= 0.9277 - 3.6224 / (b - 2))
    possible = ~sure & (k >= 0) & ~((us < 0.013) & (second > us))
    some = np.flatnonzero(possible)
    kept = k[some]
    inverse = 1.1239 + 1.1328 / (b - 3.4)
    with np.errstate(divide="ignore"):
        left = np.log(second[some] * inverse / (a / us[some] ** 2 + b))
    right = kept * math.log(mean) - mean - torch.lgamma(torch.from_numpy(kept + 1)).numpy()
    sure[some] = left <= right
    return k.astype(np.int64), sure


def _table(mean: float) -> npt.NDArray[np.float64]:
    """The distribution function at 0, 1, …, as far as 53 bits reach."""
    most = int(mean + 12 * math.sqrt(mean) + 40)
    terms = [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(most)]
    return np.cumsum(np.array(terms))
