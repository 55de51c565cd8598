"""Which sum of encrypted updates to run, and with which bounds."""

import math
from dataclasses import dataclass
from importlib.util import find_spec

from koinon.core.errors import AdmissionError
from koinon.secure.encrypted.packing import Packing
from koinon.secure.encrypted.parameters import Parameters
from koinon.secure.ring import MOST_BITS, Ring, Tally
from koinon.secure.secure_sum import SecureSum


@dataclass(frozen=True)
class EncryptedSum:
    """A sum of updates that are encrypted for some of the clients, by CKKS; the server adds ciphertexts up and can read none.

    In every round two small committees are drawn by a hash of all keys. *Openers* have the key of the round, made by the first
    of them; *keepers* do not. Each committee knows one of two masks under every encryption, and says what these come to in the
    sum that enough clients signed. The server puts both answers together. How it works, and who can do what:
    docs/explanation/secure-sums.md.

    Attributes:
        clip: As of `SecureSum`, and so are the others up to `tallies`.
        bits: Of the ring; of 16 and less several coordinates share a slot of a ciphertext, 32 // bits of them.
        step: What coordinates are rounded to.
        max_weight: Largest weight.
        minimum: Fewest clients whose sum is opened, >= 2.
        tallies: What else is summed.
        corrupt: Share of the clients that may sign two different sets, in [0, 1): more than half of all others must sign.
        openers: Answers of each committee that must be there and be the same to the bit, >= 2.
        spares: How many more are in each committee, where there are enough clients.
        mixing: Largest whole number by which the server may multiply a ciphertext; all clients see by which. 1: by none.

    Raises:
        AdmissionError: if a number is out of its bounds, or TenSEAL is not installed.
    """

    clip: float
    bits: int = 32
    step: float | None = None
    max_weight: float = 1.0
    minimum: int = 3
    tallies: tuple[Tally, ...] = ()
    corrupt: float = 0.1
    openers: int = 2
    spares: int = 1
    mixing: int = 1

    def __post_init__(self) -> None:
        if find_spec("tenseal") is None:
            raise AdmissionError("EncryptedSum needs TenSEAL: pip install 'koinon[he]'")
        if self.openers < 2 or self.spares < 0:
            raise AdmissionError(
                f"answers are compared, so EncryptedSum needs openers >= 2 and spares >= 0, not {self.openers} and {self.spares}"
            )
        if self.mixing < 1:
            raise AdmissionError(f"ciphertexts are multiplied by whole numbers from 1 on; mixing={self.mixing} is none")
        if not 0 <= self.corrupt < 1:
            raise AdmissionError(f"corrupt={self.corrupt} is a share, at least 0 and below 1")
        self.ring(self.minimum, 0)
        Parameters.of(self.fewest, self.mixing)

    @property
    def fewest(self) -> int:
        """Clients without whom there is no round: two committees that have nobody in common."""
        return max(self.minimum, 2 * self.openers)

    def admit(self, clients: int) -> None:
        """Return if a round of so many clients can work.

        Raises:
            AdmissionError: if it cannot, with what it needs.
        """
        if clients < self.fewest:
            raise AdmissionError(
                f"a round of {clients} clients; minimum={self.minimum} and two committees of openers={self.openers} need "
                f"{self.fewest}: ask more, or take SecureSum"
            )
        self.quorum(clients)
        self.ring(clients, 0)
        Parameters.of(clients, self.mixing)

    def committee(self, clients: int) -> int:
        """How many are in each of the two committees."""
        return min(self.openers + self.spares, clients // 2)

    def quorum(self, clients: int) -> int:
        """How many must sign a set of survivors, so that no second one finds as many.

        Raises:
            AdmissionError: if they are more than there are.
        """
        needed = max(self.minimum, (clients + math.ceil(self.corrupt * clients)) // 2 + 1)
        if needed > clients:
            raise AdmissionError(
                f"where corrupt={self.corrupt} of {clients} clients may sign twice, {needed} would have to sign; lower corrupt"
            )
        return needed

    def most_bytes(self, length: int) -> int:
        """Bytes of an encrypted update `[length]` at most, among however many clients."""
        extra = self._encoding.most_bytes(0)  # one coordinate each, at most
        per_slot = MOST_BITS // self.bits
        return Parameters.bytes(-(-length // per_slot) + extra)

    def ring(self, clients: int, length: int) -> Ring:
        """How the weighted vectors `[length]` of so many clients are encoded; the first tally is the weight.

        Raises:
            AdmissionError: if their sum could overflow, with the bits that it needs.
        """
        return self._encoding.ring(clients * self.mixing, length)

    def packing(self, clients: int, length: int) -> Packing:
        """How such encoded vectors lie in the slots of ciphertexts."""
        return Packing(self.ring(clients, length))

    @property
    def _encoding(self) -> SecureSum:
        return SecureSum(
            self.clip, self.bits, self.step, self.max_weight, corrupt=0.0, minimum=self.minimum, tallies=self.tallies
        )
