"""What one round costs a unit's privacy, from whom it protects, and what that needs of a strategy."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec
from koinon.privacy.accountant import Guarantee, Unit, spent
from koinon.privacy.events import Event, PoissonSampled, Repeated
from koinon.privacy.releases import Neighbours
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Sampler, Uniform
from koinon.update.noise import GaussianNoise, LaplaceNoise, Local
from koinon.update.stage import Chain

Place: TypeAlias = Literal["server", "client", "record"]
"""Who adds the noise: the server to the sum, a client to its update, a client to the gradients of its records."""

PLACES: tuple[Place, ...] = ("server", "client", "record")


@dataclass(frozen=True)
class Protection:
    """What every round costs, the same each time.

    Attributes:
        place: Where the noise is added; only the server's leaves it to be trusted.
        event: What a round releases.
        unit: Whose data is protected as a whole: all of a client's, or one record.
        neighbours: What is compared. Where the number who take part is fixed, a client that leaves makes room for
            another, so that only replacing one by another can be promised.
    """

    place: Place
    event: Event
    unit: Unit
    neighbours: Neighbours

    def stricter(self, neighbours: Neighbours) -> Neighbours:
        """Of `neighbours` and its own, those that are harder to tell apart."""
        return "replace-one" if "replace-one" in (neighbours, self.neighbours) else "add-remove"

    def after(self, rounds: int, delta: float) -> Guarantee:
        """What so many rounds cost together."""
        return spent(Repeated(self.event, rounds), delta, self.neighbours, self.unit)


def protections(stages: Chain, sample: Sampler, record: Event | None) -> tuple[Protection, ...]:
    """Every protection of a definition.

    Args:
        stages: An update's way.
        sample: Who takes part.
        record: What one local training releases by itself, or None.
    """
    found: list[Protection] = []
    for stage in stages.stages:
        if isinstance(stage, GaussianNoise | LaplaceNoise):
            found.append(_central(stage.event, sample))
        elif isinstance(stage, Local):
            found.append(Protection("client", stage.mechanism.event, "client", "replace-one"))
    if record is not None:
        found.append(Protection("record", record, "record", "add-remove"))
    return tuple(found)


def check_noise(spec: Spec, reducer: Reducer) -> None:
    """Whether the rest of a strategy keeps what noise promises.

    Raises:
        AdmissionError: naming the cure.
    """
    if spec.central_noise and not isinstance(reducer, Mean):
        raise AdmissionError(
            f"the server's noise covers a sum, and {type(reducer).__name__} takes none; use reducer=Mean(), or Local noise"
        )
    if spec.local_noise and spec.weighted:
        raise AdmissionError("a weight would tell a client's number of examples beside its noise; drop Weight")


def expected_cohort(sample: Sampler) -> float | None:
    """How many updates a round is expected to have, where the sampling alone says it."""
    return float(sample.count) if isinstance(sample, Uniform | RoundRobin) else None


def _central(event: Event, sample: Sampler) -> Protection:
    if isinstance(sample, Poisson):
        event = PoissonSampled(sample.rate, event) if sample.rate < 1 else event
        return Protection("server", event, "client", "add-remove")
    if isinstance(sample, Everyone):
        return Protection("server", event, "client", "add-remove")
    return Protection("server", event, "client", "replace-one")
