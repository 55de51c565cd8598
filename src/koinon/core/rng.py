"""The only source of randomness: a generator for every (seed, purpose, round, client).

Two generators with different arguments are independent, so no code path can shift another's draws.

`torch.Generator.manual_seed` folds its argument to 32 bits, which makes two of 65,000 streams equal
by chance; here the whole Mersenne Twister state is drawn from SHAKE-256 instead.
"""

import hashlib
import struct

import numpy as np
import torch

from koinon.core.types import ClientId

_WORDS = 624
_HEADER = struct.Struct("<QiiQ")  # seed, words left before the next refill, seeded, position
_STATE_BYTES = 5056


def generator(seed: int, purpose: str, round: int = 0, client: ClientId = "") -> torch.Generator:
    """A CPU generator whose stream depends on all four arguments and on nothing else.

    Args:
        seed: The run's seed, any integer.
        purpose: What the draws are for, e.g. `"train"`; a constant in the calling code.
        round: Round number, 0 for what happens once.
        client: Client id, empty for what the server draws.
    """
    return expanded("\x1f".join(("koinon.rng.1", str(seed), purpose, str(round), client)).encode())


def expanded(material: bytes) -> torch.Generator:
    """A CPU generator whose whole state is drawn from SHAKE-256 of `material`."""
    words = np.frombuffer(hashlib.shake_256(material).digest(4 * _WORDS), dtype="<u4")
    state = np.zeros(_STATE_BYTES, dtype=np.uint8)
    state[: _HEADER.size] = np.frombuffer(_HEADER.pack(0, 1, 1, 0), dtype=np.uint8)
    state[_HEADER.size : _HEADER.size + 8 * _WORDS].view("<u8")[:] = words
    made = torch.Generator()
    made.set_state(torch.from_numpy(state))
    return made


class Later:
    """A generator of these arguments that is made when it is first asked for, and is the same ever after."""

    __slots__ = ("_arguments", "_made")

    def __init__(self, seed: int, purpose: str, round: int = 0, client: ClientId = "") -> None:
        self._arguments = seed, purpose, round, client
        self._made: torch.Generator | None = None

    def __call__(self) -> torch.Generator:
        """The generator."""
        if self._made is None:
            self._made = generator(*self._arguments)
        return self._made


def integer(rng: torch.Generator) -> int:
    """63 bits drawn from `rng`, to seed a library that takes an integer."""
    return int(torch.randint(2**63 - 1, (), generator=rng))


def words(rng: torch.Generator) -> np.random.SFC64:
    """A source of raw 64-bit words (`random_raw(count)`) that follow from `rng`; six times as fast as torch's draws.

    For draws that others may know. NumPy keeps the stream of a bit generator the same in all versions.
    """
    return np.random.SFC64(integer(rng))
