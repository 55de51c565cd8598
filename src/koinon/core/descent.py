"""Plain gradient descent, recognised by how it is asked for."""

import functools
import math

import torch


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
