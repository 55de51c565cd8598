"""What clients put into a round's secure sum, and what the server reads out of it. Every runtime calls these.

Behind the update travel, as tallies: its weight, the examples it was trained on, and the numbers of every statistic that
the learner has told that it tells.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Matrix
from koinon.core.errors import ClientFailed
from koinon.core.norm import norms
from koinon.core.rng import generator
from koinon.core.statistics import Metrics, Statistic, from_numbers, merge, numbers
from koinon.core.types import ClientId, Vector
from koinon.durable.checkpoint import ServerState
from koinon.federation import Federation
from koinon.run.work import aggregated, shared
from koinon.secure.mask import Words
from koinon.secure.opening import Opening
from koinon.secure.ring import Ring, Tally
from koinon.secure.secure_sum import SecureSum
from koinon.update.codec import Encoded

_EXAMPLES = Tally(2.0**40)
_NUMBER = Tally(2.0**40, 2.0**-12)
"""What a statistic's number is rounded to and cut off at."""

_EXACT = 1 - 2.0**-20
"""Less than what rounding to float32 could add to a norm."""


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


def scheme(federation: Federation) -> SecureSum | None:
    """The secure sum of a definition, with all that travels in it; None where nothing is added up secretly."""
    own = federation.strategy.scheme
    if own is None:
        return None
    told = sum(len(numbers(zero)) for zero in _told(federation).values())
    return replace(own, tallies=(_EXAMPLES, *(_NUMBER,) * told))


def contribution(
    federation: Federation, seed: int, round: int, client: ClientId, ring: Ring, update: Encoded, told: Told
) -> Words:
    """What a client puts into the sum: the same bits for the same ring, however often it is asked.

    Where the server adds noise, the update is shrunk by as much as rounding could lengthen it, so that what is in the sum
    is as short as the noise counts on.

    Args:
        update: The update's bytes.
        told: What is told beside it.

    Raises:
        ClientFailed: if rounding would hide an update of the greatest length.
    """
    codec, known = federation.strategy.codec, shared(federation, seed, round)
    most = federation.strategy.promised.weight_bound or 1.0
    vector = codec.decode(update, known, 0, known.length)
    vector.clamp_(-ring.clip / most, ring.clip / most)
    vector *= told.weight * _within(federation, ring, vector, told.weight)
    given = (told.metrics.get(name, zero) for name, zero in _told(federation).items())
    values = [number for statistic in given for number in numbers(statistic)]
    tallies = [number if math.isfinite(number) else 0.0 for number in values]
    rng = generator(seed, "secure rounding", round, client)
    return ring.encode(vector, rng, (told.weight, float(told.examples), *tallies))


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
    metrics: dict[str, Statistic] = {name: from_numbers(zero, left) for name, zero in _told(federation).items()}
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


def _told(federation: Federation) -> Metrics:
    """Zeros of what clients tell; nothing beside noise."""
    return {} if federation.protections else getattr(federation.learner, "statistics", {})


def _within(federation: Federation, ring: Ring, vector: Vector, weight: float) -> float:
    """What an update is multiplied by, at most 1, so that rounding leaves its norms within what the server's noise counts on."""
    promised, factor = federation.strategy.promised, 1.0
    if not promised.central_noise:
        return factor
    most = promised.weight_bound or 1.0
    for bound, power in ((promised.l2_bound, 2), (promised.l1_bound, 1)):
        if bound is None:
            continue
        room = bound * most - ring.length ** (1 / power) * ring.resolution
        if room <= 0:
            raise ClientFailed(
                f"rounding to multiples of {ring.resolution:.3g} is as large as the updates' bound {bound:g}; give SecureSum more "
                "bits, or a smaller clip"
            )
        norm = weight * float(norms(vector, power))
        factor = min(factor, _EXACT * room / norm if norm > _EXACT * room else 1.0)
    return factor
