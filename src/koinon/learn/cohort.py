"""Clients that `TorchLearner` trains at once: those who hold equally many examples, in the order of their draws."""

from collections.abc import Callable, Iterator, Sequence

import torch

from koinon.core.errors import ClientFailed
from koinon.core.rng import integer
from koinon.core.statistics import Ratio
from koinon.core.types import Update, Vector
from koinon.data.dataset import Dataset, Samples
from koinon.learn.dense import Dense
from koinon.learn.guard import check_loss, one_thread

READ_AT_ONCE = 256
"""Examples of a client that are read and laid out at a time, rounded up to whole batches."""

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
) -> list[Update | ClientFailed]:
    """Train one model for each of these clients, who hold equally many examples.

    Draws are those of training one client after another, so only the order of additions within a product differs.

    Raises:
        Unfit: if the data is not float32 inputs of the model's size with classes from 0 on, or cannot be read.
    """
    count = len(datas[0])
    for rng in rngs:
        integer(rng)  # what would seed dropout
    orders = [list(batches(count, rng)) for rng in rngs]
    with one_thread():
        deltas, losses = dense.train(start, _batches(dense, datas, orders), len(datas), rate)
    sizes = [len(indices) for indices in orders[0]]
    return [
        _update(delta, own.tolist(), sizes, count, round) for delta, own in zip(deltas, losses.double().T, strict=True)
    ]


def _update(delta: Vector, losses: list[float], sizes: Sequence[int], count: int, round: int) -> Update | ClientFailed:
    try:
        for step, loss in enumerate(losses, start=1):
            check_loss(loss, round, step)
    except ClientFailed as failure:
        return failure
    total = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
    return Update.of(delta, count, {"train_loss": Ratio(total, float(sum(sizes)))})


def _batches(
    dense: Dense, datas: Sequence[Dataset], orders: Sequence[Sequence[torch.Tensor]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every step's inputs and classes of all clients."""
    sizes = [len(indices) for indices in orders[0]]
    many = max(1, -(-READ_AT_ONCE // sizes[0]))
    for first in range(0, len(sizes), many):
        inputs, targets = dense.examples(len(datas), sum(sizes[first : first + many]))
        for place, (data, order) in enumerate(zip(datas, orders, strict=True)):
            _read(dense, data, torch.cat(list(order[first : first + many])), inputs[place], targets[place])
        begin = 0
        for size in sizes[first : first + many]:
            yield inputs[:, begin : begin + size], targets[:, begin : begin + size]
            begin += size


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
