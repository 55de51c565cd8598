"""Norms of long vectors, and bounds on them that hold after rounding."""

import math

import torch

BLOCK = 1 << 17
"""Elements that are widened at a time: torch's own float64 norm of a float32 vector takes ten times as long."""


def norms(vectors: torch.Tensor, power: int = 2) -> torch.Tensor:
    """The L1 or L2 norm of each vector `[..., D]`, added up in float64; float64 `[..., 1]`.

    In float64 no float32 value over- or underflows, and the sum of a billion is right to nine digits.
    """
    flat = vectors.reshape(math.prod(vectors.shape[:-1]), vectors.shape[-1])
    wide = torch.empty(min(BLOCK, flat.shape[-1]), dtype=torch.float64)
    sums = torch.zeros(len(flat), dtype=torch.float64)
    for number, vector in enumerate(flat):
        for block in vector.split(BLOCK):
            part = wide[: len(block)].copy_(block)
            sums[number] += torch.dot(part, part) if power == 2 else part.abs_().sum()
    return (sums.sqrt() if power == 2 else sums).reshape(*vectors.shape[:-1], 1)


def shrinking(length: torch.Tensor, norm: float) -> torch.Tensor:
    """What to multiply vectors of these lengths (float64) by, so that none is longer than `norm`; float32, at most 1.

    Rounded down: next to the largest floats the factor is so small that rounding up would break the bound.
    """
    exact = norm / length.clamp(min=norm)
    factor = exact.to(torch.float32)
    return torch.where(factor.to(torch.float64) > exact, torch.nextafter(factor, torch.zeros_like(factor)), factor)
