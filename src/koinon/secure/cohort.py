"""Who takes part in a round, and all that follows from it."""

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from koinon.core.errors import ProtocolViolation
from koinon.core.types import ClientId
from koinon.secure import graph
from koinon.secure.graph import Sizes
from koinon.secure.keys import Setting, text
from koinon.secure.messages import Entry, Invitation
from koinon.secure.ring import Ring
from koinon.secure.secure_sum import SecureSum


@dataclass(frozen=True)
class Cohort:
    """Clients that are added up together, by sorted name, and the digests of everybody's keys in the round.

    Attributes:
        run: Id of the run.
        round: Round number, from 1.
        everybody: SHA-256 of each client's advertised keys, of those in other groups too.
        circle: This group's clients in the order of their graph.
        sizes: Neighbours and threshold.
        ring: How vectors are encoded.
    """

    run: str
    round: int
    everybody: Mapping[ClientId, bytes]
    circle: tuple[ClientId, ...]
    sizes: Sizes
    ring: Ring

    @classmethod
    def groups(
        cls, run: str, round: int, scheme: SecureSum, length: int, entries: tuple[Entry, ...]
    ) -> tuple["Cohort", ...]:
        """The groups of a round's clients: pieces of the ring that all keys decide; one if the scheme has no groups.

        Raises:
            AdmissionError: if the scheme cannot work among so many.
        """
        everybody = {entry.name: entry.keys for entry in entries}
        ring, counts = graph.order(run, round, everybody), scheme.groups(len(everybody))
        starts = [sum(counts[:number]) for number in range(len(counts))]
        return tuple(
            cls(
                run,
                round,
                everybody,
                ring[start : start + count],
                scheme.sizes(count),
                scheme.ring(max(counts), length),
            )
            for start, count in zip(starts, counts, strict=True)
        )

    @classmethod
    def of(cls, run: str, scheme: SecureSum, length: int, invitation: Invitation, name: ClientId) -> "Cohort":
        """A client's group among those who are invited, by one's own scheme.

        Raises:
            AdmissionError: if the scheme cannot work among so many.
            ProtocolViolation: if the client is not among them.
        """
        for cohort in cls.groups(run, invitation.round, scheme, length, invitation.cohort):
            if name in cohort.members:
                return cohort
        raise ProtocolViolation("the cohort lacks this client's own keys")

    @cached_property
    def members(self) -> Mapping[ClientId, int]:
        """At which point each client's shares are evaluated: from 1, by sorted name."""
        return {name: place for place, name in enumerate(sorted(self.circle), start=1)}

    @cached_property
    def setting(self) -> Setting:
        """What the round's secrets are bound to."""
        keys = (part for name, digest in sorted(self.everybody.items()) for part in (name, digest))
        group = text(str(self.sizes.threshold), *self.members)
        return Setting(self.run, self.round, hashlib.sha256(text("koinon.secure.cohort.1", group, *keys)).digest())

    def neighbours(self, name: ClientId) -> frozenset[ClientId]:
        """With whom a client shares masks and secrets."""
        return graph.beside(self.circle, name, self.sizes.neighbours)

    def fewest(self, dealers: Iterable[ClientId], answered: Set[ClientId]) -> int:
        """How many neighbours of each of these dealers answered, at least."""
        return min((len(self.neighbours(dealer) & answered) for dealer in dealers), default=0)

    def core(self, names: Iterable[ClientId]) -> frozenset[ClientId]:
        """The most of these clients of whom each has a threshold of neighbours among them."""
        left = frozenset(names)
        while lonely := {name for name in left if len(self.neighbours(name) & left) < self.sizes.threshold}:
            left -= lonely
        return left

    def to_agree(self, survivors: tuple[ClientId, ...]) -> bytes:
        """What a survivor signs."""
        return self.setting.bound("koinon.secure.survivors.1", *survivors)
