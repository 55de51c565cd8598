"""Which secure sum to run, and with which bounds: plain data that clients and server have alike."""

import math
from dataclasses import dataclass
from typing import Literal

from koinon.core.errors import AdmissionError
from koinon.secure.graph import Sizes, against_curious_server, against_lying_server
from koinon.secure.ring import CHECKS, MOST_BITS, Ring, Tally

_WEIGHT_STEPS = 2**24
_REACH = 12.0
"""Standard deviations beyond which noise is not reckoned with; a normal one is there with probability 4e-33."""


@dataclass(frozen=True)
class SecureSum:
    """A sum of which the server learns nothing but the sum, by pairwise masks that cancel.

    Every pair of neighbours shares a mask that one adds and the other subtracts; every client adds one more of its own. The
    server adds everything up and asks the survivors for what is left over: shares of the self-masks of those whose update is
    in, and of the mask keys of those who fell silent. How it works and what it withstands: docs/explanation/secure-sums.md.

    Attributes:
        clip: Largest magnitude of a coordinate of an update, > 0; what is beyond is cut off. An L2 bound is one, so after
            `Clip(norm)` nothing is.
        bits: The ring is that of the integers modulo 2**bits, and a coordinate has so many bits on the wire, in whole bytes.
        step: Coordinates are rounded, at random and without bias, to multiples of it. None: to the finest that cannot
            overflow, clients * max_weight * clip / 2**(bits - 1).
        max_weight: Largest weight; updates are multiplied by theirs before they are masked, and the weights are summed too.
        corrupt: Share of the clients that may do what the server wants, in [0, 1).
        dropout: Share of the clients that may fall silent, in [0, 1); a round may bear more and is ended where it does not.
        minimum: Fewest survivors whose sum a client helps to open, >= 2.
        server: "lying": it may say to every client what it likes; "curious": it keeps to the protocol, and needs fewer
            neighbours in large federations.
        security: Bits; beyond 50 clients, neighbours are so many that secrets leak with probability 2**-security at most.
        tallies: What else is summed, behind the vector: counts, statistics.
        group_size: Clients are put into groups of so many or a few more, anew in every round by a hash of all their keys, and
            the server learns one sum for each group, on which a robust rule can work. A client is hidden among its group
            only, and a lying client spoils its group. None: one group.
        noise: Standard deviation of the Skellam noise that clients add within the ring, in units of weighted updates: at least
            so much is in every sum that can be opened, from clients that do not work for the server. 0: none.

    Raises:
        AdmissionError: if a number is out of its bounds.
    Source: Bonawitz et al. (2017), Bell et al. (2020).
    """

    clip: float
    bits: int = 32
    step: float | None = None
    max_weight: float = 1.0
    corrupt: float = 0.1
    dropout: float = 0.2
    minimum: int = 3
    server: Literal["lying", "curious"] = "lying"
    security: int = 40
    tallies: tuple[Tally, ...] = ()
    group_size: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.max_weight < math.inf:
            raise AdmissionError(f"SecureSum needs a finite max_weight above 0, not {self.max_weight}")
        if self.minimum < 2:
            raise AdmissionError(
                f"the sum of {self.minimum} updates hides nothing; SecureSum needs minimum >= 2, better 3"
            )
        if self.server not in ("lying", "curious"):
            raise AdmissionError(f'SecureSum stands against a "lying" or a "curious" server, not {self.server!r}')
        if not 1 <= self.security <= 128:
            raise AdmissionError(f"SecureSum's security is 1 to 128 bits, not {self.security}")
        if not 2 <= self.bits <= MOST_BITS:
            raise AdmissionError(f"SecureSum's ring has 2 to {MOST_BITS} bits, not {self.bits}")
        if self.group_size is not None and self.group_size < self.minimum:
            raise AdmissionError(
                f"group_size={self.group_size} is below minimum={self.minimum}, so no sum would be opened"
            )
        if not 0 <= self.noise < math.inf:
            raise AdmissionError(f"SecureSum needs finite noise of at least 0, not {self.noise}")
        self.ring(self.group_size or self.minimum, 0)
        if not (0 <= self.corrupt < 1 and 0 <= self.dropout < 1):
            raise AdmissionError(
                f"corrupt={self.corrupt} and dropout={self.dropout} are shares, at least 0 and below 1"
            )

    def admit(self, clients: int) -> None:
        """Return if a round of so many clients can work.

        Raises:
            AdmissionError: if it cannot, with the bits, the clients or the shares that it needs.
        """
        if clients < self.minimum:
            raise AdmissionError(f"a round of {clients} clients is below minimum={self.minimum}; ask more, or lower it")
        for count in set(self.groups(clients)):
            self.sizes(count)
            self.ring(count, 0)

    def groups(self, clients: int) -> tuple[int, ...]:
        """How many clients each group of a round has; as equal as can be.

        Raises:
            AdmissionError: if they are too few for one group.
        """
        size = self.group_size or clients
        if clients < size or clients == 0:
            raise AdmissionError(f"{clients} clients make no group of {size}; ask more, or lower group_size")
        number = clients // size
        return tuple(clients // number + (place < clients % number) for place in range(number))

    def sizes(self, clients: int) -> Sizes:
        """Neighbours and threshold among so many clients of one group.

        Raises:
            AdmissionError: if they can bear no such shares of corrupt clients and dropouts.
        """
        find = against_lying_server if self.server == "lying" else against_curious_server
        return find(clients, self.corrupt, self.dropout, self.security)

    def most_bytes(self, length: int) -> int:
        """Bytes on the wire of a masked update `[length]` at most, among however many clients."""
        widest = max(tally.levels.bit_length() for tally in (self._weight, *self.tallies)) + 1
        return -(-self.bits // 8) * (length + widest * (1 + len(self.tallies)) + CHECKS)

    @property
    def _weight(self) -> Tally:
        return Tally(self.max_weight, self.max_weight / _WEIGHT_STEPS)

    def ring(self, clients: int, length: int) -> Ring:
        """How the weighted vectors `[length]` of so many clients are encoded; the first tally is the weight.

        Raises:
            AdmissionError: if their sum could overflow, with the bits that it needs.
        """
        tallies, clip, own = (self._weight, *self.tallies), self.clip * self.max_weight, 0.0
        if self.noise:
            own = self.noise / math.sqrt(self.honest(clients))
            clip += _REACH * own / math.sqrt(clients)  # the noise of all stays within the sum's range
        return Ring(self.bits, clients, clip, length, self.step, tallies, own)

    def honest(self, clients: int) -> int:
        """How many clients' noise is counted on in a sum of a group of so many: of the fewest survivors, all but those that may
        be corrupt, at least one, since whoever is curious knows its own noise.

        Raises:
            AdmissionError: if nobody is left.
        """
        corrupt = max(1, math.ceil(self.corrupt * clients))
        if self.minimum <= corrupt:
            raise AdmissionError(
                f"of {clients} clients {corrupt} may be corrupt, and a sum of minimum={self.minimum} may have no other noise than theirs; "
                f"raise minimum above {corrupt}"
            )
        return self.minimum - corrupt
