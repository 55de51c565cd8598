"""Who takes part in a round, and all that follows from it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from koinon.core.types import ClientId
from koinon.secure import graph
from koinon.secure.graph import Sizes
from koinon.secure.keys import Setting, text
from koinon.secure.messages import Entry, Invitation
from koinon.secure.ring import Ring
from koinon.secure.secure_sum import SecureSum


@dataclass(frozen=True)
class Cohort:
    """Clients of a round with the digests of their keys, by sorted name.

    Attributes:
        run: Id of the run.
        round: Round number, from 1.
        digests: SHA-256 of each client's advertised keys.
        sizes: Neighbours and threshold.
        ring: How vectors are encoded.
    """

    run: str
    round: int
    digests: Mapping[ClientId, bytes]
    sizes: Sizes
    ring: Ring

    @classmethod
    def of(cls, run: str, scheme: SecureSum, length: int, invitation: Invitation) -> "Cohort":
        """What an invitation says, with sizes and ring by one's own scheme.

        Raises:
            AdmissionError: if the scheme cannot work among so many.
        """
        return cls.made(run, invitation.round, scheme, length, invitation.cohort)

    @classmethod
    def made(cls, run: str, round: int, scheme: SecureSum, length: int, entries: tuple[Entry, ...]) -> "Cohort":
        """The cohort of these clients."""
        digests = {entry.name: entry.keys for entry in entries}
        return cls(run, round, digests, scheme.sizes(len(digests)), scheme.ring(len(digests), length))

    @cached_property
    def setting(self) -> Setting:
        """What the round's secrets are bound to."""
        parts = (part for name, digest in self.digests.items() for part in (name, digest))
        digest = hashlib.sha256(text("koinon.secure.cohort.1", str(self.sizes.threshold), *parts)).digest()
        return Setting(self.run, self.round, digest)

    def point(self, name: ClientId) -> int:
        """At which point a client's shares are evaluated, from 1."""
        return self._points[name]

    def neighbours(self, name: ClientId) -> frozenset[ClientId]:
        """With whom a client shares masks and secrets."""
        return graph.beside(self._ring, name, self.sizes.neighbours)

    def core(self, names: Iterable[ClientId]) -> frozenset[ClientId]:
        """The most of these clients of whom each has a threshold of neighbours among them."""
        left = frozenset(names)
        while lonely := {name for name in left if len(self.neighbours(name) & left) < self.sizes.threshold}:
            left -= lonely
        return left

    def to_agree(self, survivors: tuple[ClientId, ...]) -> bytes:
        """What a survivor signs."""
        return self.setting.bound("koinon.secure.survivors.1", *survivors)

    @cached_property
    def _points(self) -> Mapping[ClientId, int]:
        return {name: place for place, name in enumerate(self.digests, start=1)}

    @cached_property
    def _ring(self) -> tuple[ClientId, ...]:
        return graph.order(self.run, self.round, self.digests)
