"""Parameters of CKKS, chosen so that sums of whole numbers come out exactly.

The ring has degree 4096 and primes of 60 and 49 bits. 109 bits are what the standard of homomorphic encryption allows at that
degree for 128 bits of security (ternary secrets, classical attacks). The second prime takes the noise of encryption away; what
is sent is modulo the first alone: 2 * 4096 numbers of 8 bytes for 2048 slots, 32 bytes each, which no larger degree would make
fewer. A slot holds a word of 32 bits around 0.

The scale follows from two bounds. From above, sum times scale stays below half the first prime. From below, noise: when the
second prime is taken away from a fresh ciphertext, both its halves are rounded, and the second one's rounding is multiplied by
the ternary secret. Coefficients have a variance of (1 + 2 * 4096 / 3) / 12 by that, a slot sees 2048 times as much, and a sum
adds variances. A slot's noise is a product, with the secret's value in that slot, which is large in some: its tails are those
of a Laplace distribution, exp(-sqrt(2) * t) beyond t standard deviations. 44 of them must stay within a quarter of a step, so that
what is decrypted rounds to the exact sum in every slot except with probability 1e-27. No noise then leaves with a sum, from
which keys of CKKS can be learned (Li and Micciancio, 2021).

Source: Cheon et al. (2017); Albrecht et al., "Homomorphic encryption security standard" (2018), table 1.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from koinon.core.errors import AdmissionError

DEGREE = 4096
PRIME_BITS = (60, 49)
SLOTS = DEGREE // 2
STANDARD = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Most bits of all primes together at each degree, for 128 bits of security."""

BLOCK_BYTES = 2 * DEGREE * 8
"""A ciphertext."""

PUBLIC_BYTES = 2 * 2 * DEGREE * 8
"""A public key, which has both primes."""

SECRET_BYTES = 2 * DEGREE * 8
"""A secret key, the same."""

_DEVIATIONS = 44.0
_TOLERANCE = 0.25
"""How far from a whole number what is decrypted may be, in steps."""

_ROOM = 2.0**59 * (1 - 2**-10)  # half the first prime, less what noise may take
_WORD = 2.0**31


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a sum of so many words needs.

    Attributes:
        total: Largest sum of the clients' weights: the sum of their words is within it times 2**31.
        scale: Of the encoding: the largest whole number with room for the sum.
    """

    tolerance: ClassVar[float] = _TOLERANCE

    total: int
    scale: float

    @classmethod
    def of(cls, clients: int, mixing: int) -> "Parameters":
        """For so many clients, whose ciphertexts are multiplied by at most `mixing`.

        Raises:
            AdmissionError: if no scale keeps both bounds.
        """
        total = clients * mixing
        scale = float(math.floor(_ROOM / (total * _WORD)))
        deviation = mixing * math.sqrt(clients * (DEGREE / 2) * (1 + 2 * DEGREE / 3) / 12)
        if _DEVIATIONS * deviation > _TOLERANCE * scale:
            raise AdmissionError(
                f"the noise in a sum of {clients} ciphertexts times up to {mixing} would reach what is decrypted; take fewer "
                "clients or less mixing (170 clients at mixing=1 will do), or SecureSum, which has no noise"
            )
        return cls(total, scale)

    @property
    def largest(self) -> float:
        """Magnitude of a slot's sum at most."""
        return self.total * _WORD

    @staticmethod
    def ciphertexts(words: int) -> int:
        """How many hold so many words."""
        return -(-words // SLOTS)

    @classmethod
    def bytes(cls, words: int) -> int:
        """Of an encrypted vector of so many words."""
        return BLOCK_BYTES * cls.ciphertexts(words)
