"""Plain gradient descent, recognised by how it is asked for."""

import functools
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Descent:
    """Gradient descent with momentum.

    Attributes:
        rate: The learning rate, > 0.
        momentum: In [0, 1).
    """

    rate: float
    momentum: float


def descent(make: object) -> Descent | None:
    """What is known of `functools.partial(torch.optim.SGD, lr=…)`, with `momentum` and `weight_decay` at most; else None.

    Weight decay is of the loss: it adds the gradient of a penalty.
    """
    if not (isinstance(make, functools.partial) and make.func is torch.optim.SGD and not make.args):
        return None
    if set(make.keywords) - {"lr", "momentum", "weight_decay"}:
        return None
    rate, momentum = make.keywords.get("lr"), make.keywords.get("momentum", 0.0)
    if not isinstance(rate, int | float) or not 0 < rate < math.inf or not 0 <= momentum < 1:
        return None
    return Descent(float(rate), float(momentum))


def plain_rate(make: object) -> float | None:
    """The learning rate if `make` is `functools.partial(torch.optim.SGD, lr=…)` and no more, or None.

    Such an optimizer need not be made: its step is w <- w - rate · g, with the same bits. That is worth a case of its
    own because the first optimizer that a process makes imports torch's compiler: 72 MiB, and half of the start-up.
    """
    if not (isinstance(make, functools.partial) and make.func is torch.optim.SGD and not make.args):
        return None
    rate = make.keywords.get("lr")
    if len(make.keywords) > 1 or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
        return None
    return float(rate)
