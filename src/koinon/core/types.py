"""Frozen values that every layer speaks of."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from koinon.core.statistics import Metrics

ClientId: TypeAlias = str
"""Who a data set belongs to: a node's name on a network, a client's index (as text) in simulation."""

Vector: TypeAlias = torch.Tensor
"""A model or an update: contiguous float32 of shape `[D]`, in the order of a `Layout`."""


def canonical(clients: Iterable[ClientId]) -> list[ClientId]:
    """Clients in the one order in which anything is ever added up: shorter ids first, then by text.

    So `"2"` comes before `"10"`, and the bits of a sum depend neither on arrival nor on the runtime.
    """
    return sorted(clients, key=in_order)


def in_order(client: ClientId) -> tuple[int, ClientId]:
    """What the canonical order goes by."""
    return len(client), client


def finite(vector: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite; without the memory that `torch.isfinite` needs.

    A finite sum has only finite terms, and is the faster to take; one that is not may have overflowed.
    """
    if vector.numel() == 0 or math.isfinite(vector.sum()):
        return True
    return all(math.isfinite(bound) for bound in torch.aminmax(vector))  # NaN would be both


@dataclass(frozen=True, slots=True)
class Update:
    """What local training gives: how far the model moved, and what the client says about it.

    The three tensors may carry leading batch dimensions `[...]` when a cohort is trained at once.

    Attributes:
        delta: Trained model minus the model it started from; float32 `[..., D]`.
        weight: How much the update counts in a mean; float64 `[...]`, finite, >= 0.
        examples: How many examples it was trained on; int64 `[...]`.
        metrics: Additive statistics of the training, e.g. the mean loss.
        memory: What the learner keeps until this client's next training, by name; it never leaves the client.
    """

    delta: torch.Tensor
    weight: torch.Tensor
    examples: torch.Tensor
    metrics: Metrics = field(default_factory=dict)
    memory: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, delta: Vector, examples: int, metrics: Metrics | None = None) -> "Update":
        """One client's update with weight 1."""
        return cls(
            delta,
            torch.ones((), dtype=torch.float64),
            torch.tensor(examples, dtype=torch.int64),
            metrics or {},
        )


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of an update at one point of its way; stages are type-checked against it.

    Attributes:
        l2_bound: Largest L2 norm that `delta` can have, or None when nothing bounds it.
        l1_bound: Largest L1 norm that `delta` can have, or None.
        weight_bound: Largest weight that a client can claim, or None when nothing bounds it.
        weighted: Whether weights may differ from 1.
        summable: Whether the encoded updates may be added in a ring before they are decoded.
        visible: Whether the server sees each update, or only their sum.
        cohort: How many updates a round is expected to have, where the sampling or the noise says it.
        local_noise: Whether the client has added noise that protects it from the server too.
        central_noise: Whether the server adds noise to the sum that protects each client from all others.
        tally: How precisely the updates that are not clipped are to be counted: the noise's standard deviation / the
            cohort. Such an update has one coordinate more than the model, the last: +1/2 if it was not clipped, -1/2 if
            it was; the bounds on norms are of the others. None: there is no such coordinate.
    """

    l2_bound: float | None = None
    l1_bound: float | None = None
    weight_bound: float | None = 1.0
    weighted: bool = False
    summable: bool = True
    visible: bool = True
    cohort: float | None = None
    local_noise: bool = False
    central_noise: bool = False
    tally: float | None = None


@dataclass(frozen=True, slots=True)
class Cohort:
    """What a stage may know, on the server, of those whose updates were added up.

    Attributes:
        round: Round number, from 1.
        size: How many updates were accepted.
        weight: Sum of their weights.
    """

    round: int
    size: int
    weight: float
