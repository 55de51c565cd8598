"""What clients put into a round's secure sum, and what the server reads out of it. Every runtime calls these.

Behind the update travel, as tallies: its weight, the examples it was trained on, and the numbers of every statistic that
the learner has told that it tells.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Matrix
from koinon.core.errors import ClientFailed
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.statistics import Metrics, Statistic, from_numbers, merge, numbers
from koinon.core.types import ClientId, Vector
from koinon.durable.checkpoint import ServerState
from koinon.federation import Federation
from koinon.run.work import aggregated, shared
from koinon.secure.mask import Words
from koinon.secure.opening import Opening
from koinon.secure.ring import Ring
from koinon.update.codec import Encoded

_TRIES = 100
_SHRINK = 1 - 1e-3
_LEAST = 0.5
"""How much of an update must be left after it was shrunk, or rounding says more than it does."""


class Told(Protocol):
    """What a client tells beside its update."""

    @property
    def weight(self) -> float:
        """Its weight in the mean."""

    @property
    def examples(self) -> int:
        """How many examples it was trained on."""

    @property
    def metrics(self) -> Metrics:
        """Statistics of training and of the received model."""


@dataclass(frozen=True)
class Total:
    """What the server learns of a group.

    Attributes:
        sum: Of the weighted updates; float32 `[D]`.
        clients: How many there are.
        weight: Sum of their weights.
        examples: Sum of the examples they were trained on.
        metrics: Their merged statistics.
    """

    sum: Vector
    clients: int
    weight: float
    examples: int
    metrics: Metrics


def contribution(
    federation: Federation,
    seed: int,
    noise: Noise,
    round: int,
    client: ClientId,
    ring: Ring,
    update: Encoded,
    told: Told,
) -> Words:
    """What a client puts into the sum: the same bits for the same ring, however often it is asked.

    Where noise in the sum counts on updates that are short, this one is shrunk until it is short after rounding, too.

    Args:
        noise: The client's own, of the whole run.
        update: The update's bytes.
        told: What is told beside it.

    Raises:
        ClientFailed: if rounding would hide the update.
    """
    codec, known = federation.strategy.codec, shared(federation, seed, round)
    assert federation.scheme is not None
    vector = codec.decode(update, known, 0, known.length)
    vector.clamp_(-federation.scheme.clip, federation.scheme.clip)  # the ring has room for noise beyond it
    vector *= told.weight
    given = (told.metrics.get(name, zero) for name, zero in federation.told.items())
    values = [number for statistic in given for number in numbers(statistic)]
    tallies = [number if math.isfinite(number) else 0.0 for number in values]
    rng = generator(seed, "secure rounding", round, client)
    encoded = _short(federation, ring, vector, rng, (told.weight, float(told.examples), *tallies))
    return ring.blur(encoded, noise.of("ring", round, client)) if ring.noise else encoded


def opened(federation: Federation, opening: Opening, masked: Mapping[ClientId, Encoded]) -> Total:
    """The sum of the survivors' updates, from what they sent and the masks that are left in it.

    Raises:
        ProtocolViolation: if masks are left after all.
    """
    ring = opening.ring
    total = ring.zeros()
    for name in opening.survivors:
        update = masked[name]
        np.add(total, ring.unpack(bytes(update.read(0, update.size))), out=total)
    return read(federation, ring, opening.apply(total), len(opening.survivors))


def read(federation: Federation, ring: Ring, total: Words, clients: int) -> Total:
    """What a sum of so many clients' contributions says.

    Raises:
        ProtocolViolation: if it is no such sum.
    """
    vector, (weight, examples, *rest) = ring.decode(total, clients)
    left = iter(rest)
    metrics: dict[str, Statistic] = {name: from_numbers(zero, left) for name, zero in federation.told.items()}
    told = {name: statistic for name, statistic in metrics.items() if any(numbers(statistic))}
    return Total(vector, clients, weight, round(examples), told)


def together(
    federation: Federation, seed: int, round: int, state: ServerState, totals: Sequence[Total]
) -> tuple[ServerState, Vector, list[float]]:
    """A round's sums as one update, the server's state after that, and a weight for each client: the mean one.

    Raises:
        ClientFailed: if there are too few groups for the rule.
    """
    clients = sum(total.clients for total in totals)
    weight = math.fsum(total.weight for total in totals)
    weights = [weight / clients] * clients if clients else []
    if isinstance(federation.strategy.reducer, Mean) or not totals:
        sums = torch.zeros(federation.carried, dtype=torch.float64)
        for total in totals:
            sums += total.sum
        return state, sums.div_(weight or 1.0).to(torch.float32), weights
    means = torch.stack([total.sum / (total.weight or 1.0) for total in totals])
    names = [f"group-{number}" for number in range(1, len(totals) + 1)]
    rows = Matrix(means, [total.weight for total in totals])
    state, reduced = aggregated(federation, seed, round, state, names, rows)
    return state, reduced, weights


def merged(totals: Sequence[Total]) -> dict[str, Statistic]:
    """The statistics of all groups."""
    return merge(total.metrics for total in totals)


def _short(
    federation: Federation, ring: Ring, vector: Vector, rng: torch.Generator, tallies: tuple[float, ...]
) -> Words:
    """An encoded vector whose norms are within what noise in the sum counts on."""
    promised, left = federation.strategy.promised, 1.0
    most = promised.weight_bound or 1.0
    bounds = ((promised.l2_bound, ring.norm), (promised.l1_bound, ring.largest)) if promised.central_noise else ()
    for _ in range(_TRIES):
        encoded = ring.encode(vector if left == 1.0 else vector * left, rng, tallies)
        excess = max((norm(encoded) / (bound * most) for bound, norm in bounds if bound is not None), default=0.0)
        if excess <= 1:
            return encoded
        left *= _SHRINK / excess
        if left < _LEAST:
            break
    raise ClientFailed(
        f"rounding to multiples of {ring.resolution:.3g} would hide an update of its greatest norm; give SecureSum more bits, or a "
        "smaller clip"
    )
