"""The integers that a secure sum gives, without the cryptography: for simulation. Hides nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from koinon.core.types import ClientId
from koinon.secure.cohort import Cohort
from koinon.secure.lengths import Said, messages
from koinon.secure.mask import Words
from koinon.secure.messages import Entry
from koinon.secure.ring import Ring
from koinon.secure.secure_sum import SecureSum


@dataclass(frozen=True)
class Opened:
    """The sum of one group.

    Attributes:
        ring: What its updates are encoded in; the same for all groups.
        total: Of the survivors' encoded updates; `[L]`.
        survivors: Their names, sorted.
    """

    ring: Ring
    total: Words
    survivors: tuple[ClientId, ...]


class UnmaskedSums:
    """Adds up as they come what clients of one round would have masked.

    Who is with whom is drawn from `seed`, on a network from everybody's keys.

    Args:
        scheme: The secure sum.
        length: D, coordinates of an update.
        names: Who has advertised keys.
        seed: Of the groups and of the graph.
        round: Its number, from 1.

    Raises:
        AdmissionError: if the scheme cannot work among so many.
    """

    def __init__(self, scheme: SecureSum, length: int, names: Iterable[ClientId], seed: int, round: int) -> None:
        digest = seed.to_bytes(32, "little", signed=True)
        entries = tuple(Entry(name, bytes(32), digest, b"") for name in sorted(names))
        self._minimum = scheme.minimum
        self._cohorts = Cohort.groups("ideal", round, scheme, length, entries)
        self._places = {name: place for place, cohort in enumerate(self._cohorts) for name in cohort.circle}
        self._totals = [self.ring.zeros() for _ in self._cohorts]
        self._added: list[set[ClientId]] = [set() for _ in self._cohorts]

    @property
    def ring(self) -> Ring:
        """What updates are encoded in; the same for all groups."""
        return self._cohorts[0].ring

    def add(self, name: ClientId, encoded: Words) -> None:
        """One more client's encoded update."""
        place = self._places[name]
        np.add(self._totals[place], encoded, out=self._totals[place])
        self._added[place].add(name)

    def messages(self, name: ClientId, number: int) -> Said:
        """What a client would have said and been told in a round of this number, but for its masked update."""
        place = self._places[name]
        return messages(self._cohorts[place], number, name, frozenset(self._added[place]))

    def opened(self) -> tuple[list[Opened], list[str]]:
        """The sums that can be opened, and why the others cannot; everybody deals shares, and who was added answers."""
        found: list[Opened] = []
        reasons: list[str] = []
        for cohort, total, added in zip(self._cohorts, self._totals, self._added, strict=True):
            if len(added) >= self._minimum and cohort.fewest(cohort.members, added) >= cohort.sizes.threshold:
                found.append(Opened(cohort.ring, total, tuple(sorted(added))))
            else:
                reasons.append(
                    f"{len(added)} of {len(cohort.members)} clients answer; each needs that {cohort.sizes.threshold} of its "
                    f"{cohort.sizes.neighbours} neighbours do, and the minimum is {self._minimum}"
                )
        return found, reasons
