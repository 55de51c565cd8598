"""Federations without rounds: clients begin and end whenever they can, and the server goes on after so many updates.

An update lands on a model that others have changed since its client began: it is stale by as many steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from koinon.core.errors import AdmissionError
from koinon.core.types import Spec, Vector


class Asynchrony(Protocol):
    """When an asynchronous server goes on, and what it makes of an update that is stale."""

    @property
    def buffer(self) -> int:
        """Updates after which the model changes, >= 1."""

    @property
    def concurrency(self) -> int:
        """Clients that train at a time, >= 1."""

    @property
    def shrinks(self) -> bool:
        """Whether a landed update is never longer than it was, so that bounds on it hold."""

    def landed(self, update: Vector, staleness: int, behind: Callable[[], Vector]) -> Vector:
        """An update as it enters the mean; a new vector.

        Args:
            update: What the client changed, `[D]`.
            staleness: Steps since it began, >= 0.
            behind: Gives the model that it began from, less the present one, `[D]`, read from the disk.
        """


@dataclass(frozen=True)
class Buffered:
    """FedBuff's: the model changes by the mean of `buffer` updates, each scaled down by its staleness.

    Attributes:
        buffer: K in the paper, >= 1.
        concurrency: Clients that train at a time, >= 1.
        exponent: An update that is stale by t steps is multiplied by (1 + t)^-exponent; >= 0.
    """

    buffer: int = 10
    concurrency: int = 100
    exponent: float = 0.5
    shrinks = True

    def __post_init__(self) -> None:
        _check(self)

    def landed(self, update: Vector, staleness: int, behind: Callable[[], Vector]) -> Vector:
        """(1 + staleness)^-exponent times the update."""
        return update.mul(_share(staleness, self.exponent))


@dataclass(frozen=True)
class Mixed:
    """FedAsync's: the model moves towards each client's model as it comes, the less the staler that is.

    Attributes:
        concurrency: Clients that train at a time, >= 1.
        exponent: a in the paper's polynomial (1 + t)^-a; >= 0.
    """

    concurrency: int = 100
    exponent: float = 0.5
    buffer = 1
    shrinks = False

    def __post_init__(self) -> None:
        _check(self)

    def landed(self, update: Vector, staleness: int, behind: Callable[[], Vector]) -> Vector:
        """(1 + staleness)^-exponent times the way from the present model to the client's."""
        return update.add(behind()).mul_(_share(staleness, self.exponent))


_NEED_ROUNDS = {
    "secure": "a secure sum needs clients that take part together, and these come one by one; leave secure= out",
    "downlink": "clients begin from models of all ages and are sent whole ones; leave downlink= out",
    "method": "what an algorithm has travel beside an update would be scaled down with stale ones; leave method= out",
}


def check_asynchrony(asynchrony: Asynchrony, spec: Spec, parts: Mapping[str, object]) -> None:
    """Whether the rest of a strategy can do without rounds.

    Args:
        spec: What is known of an update.
        parts: The strategy's, by name; None for what it has not.

    Raises:
        AdmissionError: naming the cure.
    """
    for name, reason in _NEED_ROUNDS.items():
        if parts[name] is not None:
            raise AdmissionError(reason)
    if spec.tally is not None:
        raise AdmissionError(
            "what AdaptiveClip counts would be scaled down with stale updates; use a clip of fixed norm"
        )
    if spec.central_noise and not asynchrony.shrinks:
        raise AdmissionError(
            f"{type(asynchrony).__name__} moves towards a client's model, which no clip bounds; take fedbuff(), whose updates keep "
            "their bounds"
        )


def _share(staleness: int, exponent: float) -> float:
    return float((1 + staleness) ** -exponent)


def _check(asynchrony: Asynchrony) -> None:
    if asynchrony.buffer < 1 or asynchrony.concurrency < 1:
        raise AdmissionError(f"{asynchrony} needs a buffer and a concurrency of at least 1")
    exponent: float = getattr(asynchrony, "exponent", 0.0)
    if not 0 <= exponent < math.inf:
        raise AdmissionError(f"{asynchrony} needs a finite exponent of at least 0")
