"""How much may be spent, and how many rounds that lasts."""

import bisect
import math
from dataclasses import dataclass

from koinon.core.errors import AdmissionError
from koinon.privacy.accountant import spent
from koinon.privacy.events import Event, Repeated, Together
from koinon.privacy.releases import Neighbours


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent.

    Attributes:
        epsilon: > 0, finite.
        delta: In (0, 1); less than 1 / population.
        neighbours: Which populations must be hard to tell apart.

    Raises:
        AdmissionError: if a number is out of its range.
    """

    epsilon: float
    delta: float
    neighbours: Neighbours = "add-remove"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise AdmissionError(f"a budget needs a positive epsilon, not {self.epsilon}; 1 to 10 is usual")
        if not 0 < self.delta < 1:
            raise AdmissionError(
                f"a budget needs a delta between 0 and 1, not {self.delta}; less than 1 / population is usual"
            )
        if self.neighbours not in ("add-remove", "replace-one"):
            raise AdmissionError(f"{self.neighbours!r} are no neighbours; choose 'add-remove' or 'replace-one'")

    def allows(self, event: Event) -> bool:
        """Whether all of `event` stays within the budget."""
        return self._cost(event) <= self.epsilon

    def rounds_within(self, event_per_round: Event, most: int, already: Event | None = None) -> int:
        """The largest number of rounds, at most `most`, whose total stays within the budget.

        Args:
            event_per_round: What each round releases.
            most: How many rounds are wanted, >= 0.
            already: What was released before and counts as well.
        """
        before = () if already is None else (already,)

        def total(rounds: int) -> Event:
            return Together((*before, Repeated(event_per_round, rounds)))

        if self.allows(total(most)):
            return most
        return bisect.bisect_right(range(1, most), self.epsilon, key=lambda rounds: self._cost(total(rounds)))

    def _cost(self, event: Event) -> float:
        return spent(event, self.delta, self.neighbours, "client").epsilon  # the unit changes no number
