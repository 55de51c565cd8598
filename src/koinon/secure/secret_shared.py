"""Which sum by two servers to run, and with which bounds."""

from dataclasses import dataclass

from koinon.core.errors import AdmissionError
from koinon.secure.ring import Ring, Tally
from koinon.secure.secure_sum import SecureSum


@dataclass(frozen=True)
class SecretShared:
    """A sum of which neither of two servers learns more than the sum, if they do not work together.

    Clients send a masked update to the one and the seed of its mask, sealed, to the other, and are done. Who falls silent is
    not in the sum. Together the two servers know every update: give them to organisations that would not do that. How it
    works: docs/explanation/secure-sums.md.

    Attributes:
        clip: As of `SecureSum`, and so are the others.
        bits: Of the ring.
        step: What coordinates are rounded to.
        max_weight: Largest weight.
        minimum: Fewest clients whose sum is opened, >= 2.
        tallies: What else is summed.
        servers: 2.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    clip: float
    bits: int = 32
    step: float | None = None
    max_weight: float = 1.0
    minimum: int = 3
    tallies: tuple[Tally, ...] = ()
    servers: int = 2

    def __post_init__(self) -> None:
        if self.servers != 2:
            raise AdmissionError(f"SecretShared is for two servers, not {self.servers}")
        self._encoding.ring(self.minimum, 0)

    def admit(self, clients: int) -> None:
        """Return if a round of so many clients can work.

        Raises:
            AdmissionError: if it cannot, with the bits or the clients that it needs.
        """
        if clients < self.minimum:
            raise AdmissionError(f"a round of {clients} clients is below minimum={self.minimum}; ask more, or lower it")
        self.ring(clients, 0)

    def ring(self, clients: int, length: int) -> Ring:
        """How the weighted vectors `[length]` of so many clients are encoded; the first tally is the weight.

        Raises:
            AdmissionError: if their sum could overflow, with the bits that it needs.
        """
        return self._encoding.ring(clients, length)

    @property
    def _encoding(self) -> SecureSum:
        return SecureSum(
            self.clip, self.bits, self.step, self.max_weight, corrupt=0.0, minimum=self.minimum, tallies=self.tallies
        )
