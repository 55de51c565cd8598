"""Virtual time: when simulated clients would answer on devices of their own. Nothing is waited for, and nothing is random
but by the seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch

from koinon.core.errors import Unavailable
from koinon.core.rng import generator
from koinon.core.types import ClientId
from koinon.data.devices import Clock, Devices
from koinon.data.population import Population
from koinon.durable.history import Outcome, RoundRecord
from koinon.federation import Federation
from koinon.learn.learner import Learner

PATIENCE_S = 60.0
"""Seconds after which it is looked again for clients that are there, where there are too few."""

LONGEST_WAIT_S = 30 * 86_400.0
"""Seconds of waiting for clients after which a run ends."""

Draw: TypeAlias = Callable[[Sequence[ClientId]], list[ClientId]]
"""Candidates, in canonical order -> a round's cohort."""


@dataclass(frozen=True)
class Missed:
    """How a client's part ended whose update does not count."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Timed:
    """What time makes of a round.

    Attributes:
        cohort: Who takes part, in canonical order.
        missed: Who does not answer, or too late.
        begun: After which round the model was from which each of the others began.
        closed_s: When the round closes, in virtual seconds since the run began; None where no time is told.
        needed: After which earlier rounds the models are from which somebody still trains once this one has closed.
    """

    cohort: list[ClientId]
    missed: Mapping[ClientId, Missed] = field(default_factory=dict)
    begun: Mapping[ClientId, int] = field(default_factory=dict)
    closed_s: float | None = None
    needed: frozenset[int] = frozenset()


class Pace(Protocol):
    """Who takes part when; asked for each round once, in order."""

    def resume(self, closed: Sequence[RoundRecord]) -> None:
        """Go on after these rounds, all from the first."""

    def round(self, number: int, draw: Draw) -> Timed:
        """The round of this number, from 1."""


@dataclass(frozen=True)
class Parts:
    """How long clients' parts take.

    A local training goes `epochs` times through a client's examples, of learners that have such a number. An update counts
    with the most bytes that its codec may need.
    """

    federation: Federation
    population: Population
    devices: Devices

    def seconds(self, client: ClientId) -> float:
        """Of a whole part: the model down, training, the update up."""
        learner, strategy = self.federation.learner, self.federation.strategy
        examples = self.population.size(client)
        examples = len(self.population[client].train) if examples is None else examples
        layout, secure = self.federation.travelling, self.federation.scheme
        up = secure.most_bytes(layout.length) if secure is not None else strategy.codec.most(layout)
        return self.devices(client).seconds(_passes(learner) * examples, up, 4 * learner.layout.length)


@dataclass(frozen=True)
class Timeless:
    """Everybody answers, and nobody asks when."""

    ids: Sequence[ClientId]

    def resume(self, closed: Sequence[RoundRecord]) -> None:
        """There is nothing to remember."""

    def round(self, number: int, draw: Draw) -> Timed:
        """All candidates are there."""
        return Timed(draw(self.ids))


@dataclass
class InRounds:
    """Rounds one after the other: each closes when enough have answered, or at its deadline.

    Args:
        clock: The clock.
        parts: How long each client's part takes.
        seed: Of the dropouts.
    """

    clock: Clock
    parts: Parts
    seed: int
    now: float = field(default=0.0, init=False)

    def resume(self, closed: Sequence[RoundRecord]) -> None:
        """The next round opens when the last one closed."""
        self.now = (closed[-1].clock_s if closed else None) or 0.0

    def round(self, number: int, draw: Draw) -> Timed:
        """A round that opens now, and closes when the last update that it needs is in.

        A client that drops out does so at the moment at which it would have answered, and is then waited for no longer.
        """
        opened, cohort = self._opened(draw)
        ends = {client: self.parts.seconds(client) for client in cohort}
        answering = {client: end for client, end in ends.items() if self._answers(number, client, opened, end)}
        wanted = max(self._least, math.ceil(len(cohort) / (1 + self._over_selection) - 1e-9))
        in_order = sorted(answering.values())
        last = in_order[wanted - 1] if 0 < wanted <= len(in_order) else max(ends.values(), default=0.0)
        last = min(last, math.inf if self.clock.deadline_s is None else self.clock.deadline_s)
        self.now = opened + last
        missed = {client: self._missed(client in answering, end, last) for client, end in ends.items()}
        left = {client: why for client, why in missed.items() if why is not None}
        return Timed(cohort, left, closed_s=self.now)

    def _opened(self, draw: Draw) -> tuple[float, list[ClientId]]:
        """When the round opens, and among whom."""
        devices, ids = self.clock.devices, self.parts.population.ids
        if not devices.intermittent:
            return self.now, draw(ids)
        at = self.now
        while at - self.now < LONGEST_WAIT_S:
            present = [client for client in ids if devices(client).stays(at)]
            if len(present) >= self._least:
                return at, draw(present)
            at += PATIENCE_S
        raise Unavailable(
            f"never in {LONGEST_WAIT_S / 86_400:.0f} days are {self._least} clients there at a time; see their devices"
        )

    @property
    def _least(self) -> int:
        """Clients without whom no round can be added up."""
        return max(1, self.parts.federation.strategy.least)

    @property
    def _over_selection(self) -> float:
        """None where privacy counts on nobody knowing who takes part: there as on a network, everybody who was drawn counts."""
        return 0.0 if self.parts.federation.strategy.secret_cohort is not None else self.clock.over_selection

    def _answers(self, number: int, client: ClientId, at: float, seconds: float) -> bool:
        device = self.clock.devices(client)
        return device.stays(at, seconds) and not dropped(device.dropout, self.seed, number, client)

    def _missed(self, answers: bool, end: float, last: float) -> Missed | None:
        if not answers:
            return Missed("absent", "its device dropped out")
        if end > last:
            return Missed("refused", f"late: it took {end:.1f} s, and the round was over after {last:.1f} s")
        return None


def _passes(learner: Learner) -> int:
    """How often a local training goes through the examples, of a learner or the one that it is around."""
    within: Learner | None = getattr(learner, "within", None)
    return int(getattr(learner, "epochs", 1)) if within is None else _passes(within)


def dropped(chance: float, seed: int, number: int, client: ClientId) -> bool:
    """Whether a device vanishes from this part of its client."""
    return chance > 0 and bool(torch.rand((), generator=generator(seed, "dropout", number, client)) < chance)
