"""Parallel SGD with liars: in each round every client sends a gradient, and a rule of any library makes one of them.

All gradients of a round come from two batched products, so that a run takes seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import torch
from torch.nn import functional

import koinon as kn
from koinon.attack.attack import Attack, Known
from koinon.core.rng import generator
from koinon.data.dataset import Dataset

HIDDEN, CLASSES, PIXELS = 32, 10, 784
SIZES = (PIXELS * HIDDEN, HIDDEN, HIDDEN * CLASSES, CLASSES)
EVERY, LAST = 30, 5
"""A run's accuracy is the mean of the last five measured, one each 30 steps: the measure of the bucketing paper."""

Rule = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""What a server makes of updates `[n, D]`, not to be changed; the generator draws lots. One that remembers earlier rounds
must not meet an attack that tries it."""


@dataclass(frozen=True)
class Training:
    """How clients and server train.

    Attributes:
        honest: Clients with data.
        steps: Rounds.
        rate: Learning rate of the server.
        batch: Images of one gradient, drawn with replacement.
        momentum: A client sends momentum · what it sent last + (1 - momentum) · gradient.
        decay: Of the weights, at the server.
    """

    honest: int
    steps: int
    rate: float
    batch: int
    momentum: float = 0.0
    decay: float = 0.0


@dataclass(frozen=True)
class Liars:
    """Who lies besides the honest clients.

    Attributes:
        count: How many.
        attack: What they send, each as if its honest update were the mean of the honest ones.
        faithful: Whether they go on copying the client that the attack copied first, as mimics of the bucketing paper do.
    """

    count: int = 0
    attack: Attack = Attack()
    faithful: bool = False


def parts(targets: torch.Tensor, clients: int, similarity: float, seed: int) -> list[torch.Tensor]:
    """Who has which images: a share is dealt at random, the rest in the order of its labels; indices for each client.

    Source: Karimireddy et al., "SCAFFOLD" (2020), §7, and byzfl's `gamma_similarity_niid`.
    """
    order = torch.randperm(len(targets), generator=generator(seed, "split"))
    alike = int(similarity * len(targets))
    mixed, rest = order[:alike], order[alike:]
    in_order = rest[targets[rest].argsort(stable=True)]
    pairs = zip(mixed.tensor_split(clients), in_order.tensor_split(clients), strict=True)
    return [torch.cat(pair) for pair in pairs]


def accuracy(data: kn.DataSet, training: Training, similarity: float, liars: Liars, rule: Rule, seed: int) -> float:
    """Test accuracy in the end; split, first weights, batches, lies and lots follow from the seed."""
    inputs, targets = _whole(data.train)
    test = _whole(data.test)
    owned = parts(targets, training.honest, similarity, seed)
    model, sent, copied, found = first(seed), torch.zeros(training.honest, sum(SIZES)), None, []
    for step in range(1, training.steps + 1):
        rng = generator(seed, "batches", step)
        chosen = torch.stack([part[torch.randint(len(part), (training.batch,), generator=rng)] for part in owned])
        new = gradients(model, inputs[chosen], targets[chosen])
        sent = training.momentum * sent + (1 - training.momentum) * new
        updates = sent
        if liars.count:
            lies, copied = _lies(liars, sent, copied, rule, step, seed)
            updates = torch.cat((sent, lies))
        moved = rule(updates, generator(seed, "lots", step))
        model = model - training.rate * (moved + training.decay * model)
        if step % EVERY == 0 or step == training.steps:
            found.append(float((logits(model, test[0]).argmax(-1) == test[1]).double().mean()))
    return mean(found[-LAST:])


def _lies(
    liars: Liars, honest: torch.Tensor, copied: int | None, rule: Rule, step: int, seed: int
) -> tuple[torch.Tensor, int | None]:
    """What is sent, and whom the liars copy from now on."""
    if copied is not None:
        return honest[copied].expand(liars.count, -1), copied
    own = honest.mean(0).expand(liars.count, -1)
    lots = generator(seed, "lots", step)
    known = Known(honest, own, lambda updates: rule(updates, lots), step, generator(seed, "lies", step))
    lies = liars.attack.lies(known)
    return lies, int((honest - lies[0]).square().sum(1).argmin()) if liars.faithful else None


def first(seed: int) -> torch.Tensor:
    """Weights and biases in one row, drawn as `torch.nn.Linear` draws them."""
    rng = generator(seed, "weights")
    bounds = (PIXELS**-0.5, PIXELS**-0.5, HIDDEN**-0.5, HIDDEN**-0.5)
    drawn = [bound * (2 * torch.rand(size, generator=rng) - 1) for size, bound in zip(SIZES, bounds, strict=True)]
    return torch.cat(drawn)


def logits(model: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """`[..., 784]` -> `[..., 10]`."""
    return _layers(model, inputs)[1]


def gradients(model: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each client's mean cross-entropy; `[n, b, 784]` and `[n, b]` -> `[n, D]`."""
    hidden, scores = _layers(model, inputs)
    count, batch = targets.shape
    wrong = (scores.softmax(-1) - functional.one_hot(targets, CLASSES)) / batch
    behind = wrong @ model[SIZES[0] + SIZES[1] : -CLASSES].view(HIDDEN, CLASSES).T * (hidden > 0)
    each = (inputs.mT @ behind, behind.sum(1), hidden.mT @ wrong, wrong.sum(1))
    return torch.cat([part.reshape(count, -1) for part in each], 1)


def _layers(model: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the hidden layer and the last give."""
    first_weights, first_bias, last_weights, last_bias = model.split(SIZES)
    hidden = (inputs @ first_weights.view(PIXELS, HIDDEN) + first_bias).relu()
    return hidden, hidden @ last_weights.view(HIDDEN, CLASSES) + last_bias


def _whole(part: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in rows, centred and scaled by what Fashion-MNIST is on average, and labels."""
    inputs, targets = part.batch(torch.arange(len(part)))
    return (inputs.reshape(len(targets), -1) - 0.286) / 0.353, targets
