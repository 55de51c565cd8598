"""A noisy release is data: what was drawn, relative to what one unit can change.

An event says nothing of vectors or rounds. Where one unit (a client, or a record) is added or removed, the released
sum moves by at most 1 in the units of `noise_multiplier`; where a unit is replaced by another, by at most 2.
"""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A sum with Gaussian noise on every coordinate.

    Attributes:
        noise_multiplier: Standard deviation of the noise / largest L2 norm of one unit's contribution, > 0.
    """

    noise_multiplier: float


@dataclass(frozen=True, slots=True)
class Laplace:
    """A sum with Laplace noise on every coordinate.

    Attributes:
        noise_multiplier: Scale of the noise (the mean of its magnitude) / largest L1 norm of one unit's contribution, > 0.
    """

    noise_multiplier: float


@dataclass(frozen=True, slots=True)
class Skellam:
    """A sum of vectors of whole numbers with Skellam noise on every coordinate.

    Attributes:
        noise_multiplier: Standard deviation of the noise / largest L2 norm of one unit's contribution, > 0.
        steps: That norm, >= 1: the finer the numbers, the less the noise differs from Gaussian noise.
        length: Coordinates of a vector, >= 1.
    """

    noise_multiplier: float
    steps: float
    length: int


@dataclass(frozen=True, slots=True)
class PoissonSampled:
    """A release to which every unit contributes with probability `rate`, independently and in secret."""

    rate: float
    event: "Event"


@dataclass(frozen=True, slots=True)
class FixedSampled:
    """A release to which `count` of `population` units contribute, chosen uniformly without replacement and in secret."""

    count: int
    population: int
    event: "Event"


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same kind of release, `times` times."""

    event: "Event"
    times: int


@dataclass(frozen=True, slots=True)
class Together:
    """Several releases about the same units."""

    events: tuple["Event", ...]


@dataclass(frozen=True, slots=True)
class Unprotected:
    """A release that nothing protects; no finite epsilon covers it.

    Attributes:
        what: What is released.
    """

    what: str


Event: TypeAlias = Gaussian | Laplace | Skellam | PoissonSampled | FixedSampled | Repeated | Together | Unprotected
