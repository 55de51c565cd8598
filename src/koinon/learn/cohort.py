"""Clients that `TorchLearner` trains at once: those who hold equally many examples, in the order of their draws."""

from collections.abc import Callable, Iterator, Sequence

import torch

from koinon.core.errors import ClientFailed
from koinon.core.rng import integer
from koinon.core.statistics import Ratio
from koinon.core.types import Update, Vector
from koinon.data.dataset import Dataset, Samples
from koinon.learn.dense import Block, Dense
from koinon.learn.guard import check_loss, one_thread

Batches = Callable[[int, torch.Generator], Iterator[torch.Tensor]]
"""Number of examples, generator -> the indices of every step."""


class Unfit(Exception):
    """What the clients hold cannot be trained at once; their generators have been drawn from."""


def alike(datas: Sequence[Dataset]) -> list[list[int]]:
    """Places of the clients that hold equally many examples."""
    groups: dict[int, list[int]] = {}
    for place, data in enumerate(datas):
        groups.setdefault(len(data), []).append(place)
    return list(groups.values())


def train_at_once(
    dense: Dense,
    start: Vector,
    datas: Sequence[Dataset],
    rngs: Sequence[torch.Generator],
    batches: Batches,
    rate: float,
    round: int,
    out: torch.Tensor,
) -> list[Update | ClientFailed]:
    """Train one model for each of these clients, who hold equally many examples.

    Draws are those of training one client after another, so only the order of additions within a product differs.

    Args:
        out: Memory for the deltas, float32 `[clients, D]`, which the updates keep.

    Raises:
        Unfit: if the data is not float32 inputs of the model's size with classes from 0 on, or cannot be read.
    """
    count = len(datas[0])
    for rng in rngs:
        integer(rng)  # what would seed dropout
    orders = [list(batches(count, rng)) for rng in rngs]
    with one_thread():
        losses = dense.train(start, _blocks(dense, datas, orders), rate, out)
    sizes = [len(indices) for indices in orders[0]]
    return [
        _update(delta, own.tolist(), sizes, count, round) for delta, own in zip(out, losses.double().T, strict=True)
    ]


def _update(delta: Vector, losses: list[float], sizes: Sequence[int], count: int, round: int) -> Update | ClientFailed:
    try:
        for step, loss in enumerate(losses, start=1):
            check_loss(loss, round, step)
    except ClientFailed as failure:
        return failure
    total = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
    return Update.of(delta, count, {"train_loss": Ratio(total, float(sum(sizes)))})


def _blocks(dense: Dense, datas: Sequence[Dataset], orders: Sequence[Sequence[torch.Tensor]]) -> Iterator[Block]:
    """All clients' examples in the order of their steps; a block is valid until the next."""
    sizes = [len(indices) for indices in orders[0]]
    many = max(1, dense.block // sizes[0])
    for first in range(0, len(sizes), many):
        batches = sizes[first : first + many]
        inputs, targets = dense.examples(len(datas), sum(batches))
        for place, (data, order) in enumerate(zip(datas, orders, strict=True)):
            _read(dense, data, torch.cat(list(order[first : first + many])), inputs[place], targets[place])
        yield Block(inputs, targets, batches, last=first + many >= len(sizes))


def _read(dense: Dense, data: Dataset, indices: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Lay a client's examples at `indices` out in `inputs` `[n, inputs]` and `targets` `[n]`."""
    try:
        if isinstance(data, Samples):
            fits = _fits(dense, data.inputs, data.targets, len(data))
            if fits:
                torch.index_select(data.inputs.flatten(1), 0, indices, out=inputs)
                torch.index_select(data.targets, 0, indices, out=targets)
        else:
            own, classes = data.batch(indices)
            fits = _fits(dense, own, classes, len(indices))
            if fits:
                inputs.copy_(own.flatten(1))
                targets.copy_(classes)
    except Exception as error:  # whatever it is, training that client alone will tell
        raise Unfit from error
    least, most = torch.aminmax(targets)
    if not fits or least < 0 or most >= dense.outputs:
        raise Unfit


def _fits(dense: Dense, inputs: torch.Tensor, targets: torch.Tensor, count: int) -> bool:
    known = inputs.dtype == torch.float32 and targets.dtype == torch.int64
    shaped = inputs.shape[0] == count and inputs[0].numel() == dense.inputs and targets.shape == (count,)
    return known and shaped and (dense.flattens or inputs.ndim == 2)
