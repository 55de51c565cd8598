"""What one round costs a unit's privacy, from whom it protects, and what that needs of a strategy."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec
from koinon.privacy.accountant import Guarantee, Unit, spent
from koinon.privacy.budget import Budget
from koinon.privacy.events import Event, PoissonSampled, Repeated
from koinon.privacy.releases import Neighbours
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Sampler, Uniform
from koinon.update.correlated import CorrelatedNoise
from koinon.update.noise import Local, OnSum, SkellamNoise
from koinon.update.stage import Chain

Place: TypeAlias = Literal["server", "sum", "client", "record"]
"""Who adds the noise: the server to the sum, clients together within a secure sum, a client to its update, a client to the
gradients of its records."""

PLACES: tuple[Place, ...] = ("server", "sum", "client", "record")


@dataclass(frozen=True)
class Protection:
    """What rounds cost.

    Attributes:
        place: Where the noise is added; only the server's leaves it to be trusted.
        event: What a round releases, or all that are covered.
        unit: Whose data is protected as a whole: all of a client's, or one record.
        neighbours: What is compared. Where the number who take part is fixed, a client that leaves makes room for
            another, so that only replacing one by another can be promised.
        covers: How many rounds `event` covers, all together; None where every round releases it anew.
    """

    place: Place
    event: Event
    unit: Unit
    neighbours: Neighbours
    covers: int | None = None

    def _stricter(self, neighbours: Neighbours) -> Neighbours:
        """Of `neighbours` and its own, those that are harder to tell apart."""
        return "replace-one" if "replace-one" in (neighbours, self.neighbours) else "add-remove"

    def times(self, rounds: int) -> int:
        """How often so many rounds, from the first, release `event`."""
        return rounds if self.covers is None else min(rounds, 1)

    def after(self, rounds: int, delta: float) -> Guarantee:
        """What so many rounds, from the first, cost together."""
        return spent(Repeated(self.event, self.times(rounds)), delta, self.neighbours, self.unit)

    def rounds_within(self, budget: Budget, most: int) -> int:
        """The largest number of rounds, at most `most`, whose total stays within the budget."""
        budget = replace(budget, neighbours=self._stricter(budget.neighbours))
        if self.covers is not None:
            return most if budget.allows(self.event) else 0
        return budget.rounds_within(self.event, most)


def protections(stages: Chain, sample: Sampler, record: Event | None, length: int) -> tuple[Protection, ...]:
    """Every protection of a definition.

    Args:
        stages: An update's way.
        sample: Who takes part.
        record: What one local training releases by itself, or None.
        length: Coordinates of an update.
    """
    found: list[Protection] = []
    for stage in stages.stages:
        if isinstance(stage, SkellamNoise):
            whole = replace(_central(stage, sample), place="sum", event=stage.released(length))
            found.append(whole)
        elif isinstance(stage, OnSum):
            found.append(_central(stage, sample))
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


def check_separation(stages: Chain, sample: Sampler) -> None:
    """Whether the sampling keeps the rounds apart in which a client takes part, where noise counts on it.

    Raises:
        AdmissionError: naming the cure.
    """
    separation = separation_of(stages)
    if separation is None or isinstance(sample, RoundRobin):
        return
    if not isinstance(sample, Everyone):
        raise AdmissionError(
            f"{type(sample).__name__} can take a client twice at any distance, which CorrelatedNoise does not cover; sample by "
            "RoundRobin(count)"
        )
    if separation > 1:
        raise AdmissionError(
            f"everyone takes part in every round, where CorrelatedNoise allows one in {separation}; give separation=1 or sample "
            "by RoundRobin(count)"
        )


def check_enough(stages: Chain, sample: Sampler, clients: int) -> None:
    """Whether so many clients can take turns as far apart as noise counts on.

    Raises:
        AdmissionError: naming the cure.
    """
    separation = separation_of(stages)
    if separation is None or not isinstance(sample, RoundRobin):
        return
    kept = clients // min(sample.count, clients)
    if kept < separation:
        raise AdmissionError(
            f"{clients} clients, {sample.count} at a time, take part once in {kept} rounds, and CorrelatedNoise covers once in "
            f"{separation}; give it separation={kept}, or wait for {sample.count * separation} clients"
        )


def separation_of(stages: Chain) -> int | None:
    """Rounds from one participation of a client to its next that noise counts on; None where it counts on none."""
    return next((stage.separation for stage in stages.stages if isinstance(stage, CorrelatedNoise)), None)


def _central(stage: OnSum, sample: Sampler) -> Protection:
    event = stage.event
    if isinstance(stage, CorrelatedNoise):
        neighbours: Neighbours = "add-remove" if isinstance(sample, Everyone) else "replace-one"
        return Protection("server", event, "client", neighbours, stage.rounds)
    if isinstance(sample, Poisson):
        event = PoissonSampled(sample.rate, event) if sample.rate < 1 else event
        return Protection("server", event, "client", "add-remove")
    if isinstance(sample, Everyone):
        return Protection("server", event, "client", "add-remove")
    return Protection("server", event, "client", "replace-one")
