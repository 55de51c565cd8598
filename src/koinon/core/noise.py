"""Noise that protects people: drawn from AES-256 in counter mode, so that nobody without the key can subtract it.

`core/rng.py` is for all other randomness: a Mersenne Twister is reconstructed from a few hundred of its outputs, and
whoever does that knows the noise. In simulation the same code runs with a key that follows from the run's seed.

A Gaussian is made by Box and Muller's method, a Laplace as the logarithm of a ratio of two uniforms. Both reach as
far as 64 bits do, to 9.4 standard deviations and to 44 scales: what is cut off has a probability below 2**-63.

Floating-point noise is a lattice, and the least bits of data plus noise can tell which data are possible. So what is
released is rounded, after the noise was added, to multiples of a power of two between 2**-11 and 2**-10 of the
noise's scale: one such step spans thousands of the lattice's points. It costs a millionth of the noise's variance and
no privacy, being done to the noisy value. It is a defence against a known attack, not a proof: the accounting still
reasons about real numbers.

Sources: Box and Muller, "A note on the generation of random normal deviates" (1958); Mironov, "On significance of the
least significant bits for differential privacy" (2012); Jin et al., "Are we there yet? Timing and floating-point
attacks on differential privacy systems" (2022).
"""

import hashlib
import math
import os
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from koinon.core.rng import expanded
from koinon.core.types import ClientId, Vector

Words: TypeAlias = npt.NDArray[np.uint32]

_KEY_BYTES = 32
_WORDS = 1 << 18
"""Words of keystream at a time; the draws' order depends on it. Below it the overhead of each torch call shows (a
quarter the size is 1.3 times as slow), above it memory does: all buffers of a call are 2.5 MiB."""

_ZEROS = bytes(4 * _WORDS)  # what is encrypted to obtain the keystream
_COARSE = 1 << 16
"""Words below this are continued by 32 more bits: as 32-bit uniforms they are too coarse for a logarithm."""

_STEP = 2.0**-10
_LEAST, _MOST = 1e-30, 1e30


class Noise:
    """A stream of cryptographic noise: what it gives depends on its key and on nothing else. It does not change.

    It has no position: two calls with one Noise give the same draws, and adding those to two vectors lets anyone
    subtract one from the other. So derive one by `of` for every single use. In return a process that was killed gives
    the same noise again, on the same kind of processor to the bit.

    Attributes:
        key: 32 bytes; whoever has them can take the noise away.
        secret: Whether nobody else knows the key. False when it follows from a seed: then it protects nobody.

    Raises:
        ValueError: if the key does not have 32 bytes.
    """

    __slots__ = ("_key", "_origin", "secret")

    def __init__(self, key: bytes, secret: bool) -> None:
        if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
            raise ValueError(f"a noise key has {_KEY_BYTES} bytes; take Noise.fresh() or Noise.seeded(seed)")
        self._key: bytes | None = key
        self._origin: tuple[Noise, str, int, ClientId] | None = None
        self.secret = secret

    @property
    def key(self) -> bytes:
        """Derived when it is first asked for: most clients of most rounds draw no noise."""
        if self._key is None:
            assert self._origin is not None
            within, *names = self._origin
            parts = [str(part).encode() for part in names]
            name = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
            self._key = within._derived(b"koinon.noise.of", name)
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Noise) and (self.key, self.secret) == (other.key, other.secret)

    def __hash__(self) -> int:
        return hash((self.key, self.secret))

    def __repr__(self) -> str:
        return f"Noise(secret={self.secret})"

    @classmethod
    def fresh(cls) -> "Noise":
        """Noise with a new key from the operating system, for use on people's data."""
        return cls(os.urandom(_KEY_BYTES), secret=True)

    @classmethod
    @lru_cache(maxsize=4)
    def seeded(cls, seed: int) -> "Noise":
        """Noise for simulation: equal seeds, any integers, give equal bits. It protects nobody."""
        return cls(hashlib.shake_256(f"koinon.noise.seed.1\x1f{seed}".encode()).digest(_KEY_BYTES), secret=False)

    def of(self, purpose: str, round: int = 0, client: ClientId = "") -> "Noise":
        """An independent stream for every purpose, round and client.

        Args:
            purpose: What the draws are for, e.g. `"central"`; a constant in the calling code.
            round: Round number, 0 for what happens once.
            client: Client id, empty for what the server draws.
        """
        made = Noise.__new__(Noise)
        made._key, made._origin, made.secret = None, (self, purpose, round, client), self.secret
        return made

    def add_gaussian(self, vector: Vector, stddev: float) -> Vector:
        """Add independent Gaussian noise to every element, in place, and return the vector.

        Args:
            vector: Contiguous float32 `[D]`, of any length.
            stddev: Standard deviation, in the vector's units; 1e-30 to 1e30.

        Raises:
            ValueError: if the vector is not such a vector or the standard deviation is out of range.
        """
        _check(vector, stddev)
        words, first, second, third = _buffers(vector.numel())
        stream, finer = self._keystream(b"gaussian"), self._keystream(b"gaussian.finer")
        for start in range(0, vector.numel(), _WORDS):
            block = vector[start : start + _WORDS]
            pairs = (len(block) + 1) // 2
            stream.fill(words[: 2 * pairs])
            radius = _unit(words[:pairs], finer, first[:pairs]).log_().mul_(-2).sqrt_()
            turns = torch.from_numpy(words[pairs : 2 * pairs].view(np.int32))
            angle = second[:pairs].copy_(turns).mul_(math.pi / 2**31)
            cosine, sine = torch.cos(angle, out=third[:pairs]), angle.sin_()
            block[:pairs].addcmul_(radius, cosine, value=stddev)
            rest = len(block) - pairs
            block[pairs:].addcmul_(radius[:rest], sine[:rest], value=stddev)
            _round(block, stddev)
        return vector

    def add_laplace(self, vector: Vector, scale: float) -> Vector:
        """Add independent Laplace noise to every element, in place, and return the vector.

        Args:
            vector: Contiguous float32 `[D]`, of any length.
            scale: Mean magnitude of the noise, in the vector's units; 1e-30 to 1e30. The deviation is √2 times it.

        Raises:
            ValueError: if the vector is not such a vector or the scale is out of range.
        """
        _check(vector, scale)
        words, first, second, _ = _buffers(2 * vector.numel())
        stream, finer = self._keystream(b"laplace"), self._keystream(b"laplace.finer")
        for start in range(0, vector.numel(), _WORDS // 2):
            block = vector[start : start + _WORDS // 2]
            count = len(block)
            stream.fill(words[: 2 * count])
            above = _unit(words[:count], finer, first[:count])
            below = _unit(words[count : 2 * count], finer, second[:count])
            block.add_(above.div_(below).log_(), alpha=scale)
            _round(block, scale)
        return vector

    def uniform(self, count: int) -> torch.Tensor:
        """Uniform draws in [0, 1) of 53 bits each; float64 `[count]`."""
        drawn = torch.empty(count, dtype=torch.float64)
        values, words = drawn.numpy(), np.empty(min(_WORDS, 2 * count), dtype=np.uint32)
        stream = self._keystream(b"uniform")
        for start in range(0, count, _WORDS // 2):
            block = values[start : start + _WORDS // 2]
            taken = words[: 2 * len(block)]
            stream.fill(taken)
            np.multiply(taken.view(np.uint64) >> 11, 2.0**-53, out=block)
        return drawn

    def generator(self) -> torch.Generator:
        """A CPU generator for draws that stay secret, such as who takes part.

        It is a Mersenne Twister: its key is safe, but who sees some hundred draws can tell all others.
        """
        return expanded(self._derived(b"koinon.noise.use", b"generator"))

    def _keystream(self, use: bytes) -> "_Keystream":
        return _Keystream(self._derived(b"koinon.noise.use", use))

    def _derived(self, domain: bytes, name: bytes) -> bytes:
        """A key that tells nothing of this one, nor of those derived in other domains or under other names."""
        return hashlib.blake2b(name, digest_size=_KEY_BYTES, key=self.key, person=domain).digest()


class _Keystream:
    """The AES-256-CTR keystream of one key; every key has one use, so that the counter may start from zero."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def fill(self, words: Words) -> None:
        """Write the next `len(words)` words, at most `_WORDS`."""
        self._cipher.update_into(memoryview(_ZEROS)[: words.nbytes], words.view(np.uint8).data)


def _unit(words: Words, finer: _Keystream, drawn: torch.Tensor) -> torch.Tensor:
    """`words` as uniforms in (0, 1], written to float32 `drawn`; 64 bits decide where 32 are too few."""
    drawn.copy_(torch.from_numpy(words)).mul_(2.0**-32)
    rare = np.flatnonzero(words < _COARSE)
    if rare.size:
        more = np.empty(rare.size, dtype=np.uint32)
        finer.fill(more)
        drawn.numpy()[rare] = (words[rare] * 2.0**32 + more + 1) * 2.0**-64
    return drawn


def _round(block: Vector, scale: float) -> None:
    """Round to multiples of the greatest power of two up to `_STEP * scale`, in place.

    Values beyond 2**22 such steps, of which float32 has few finer ones, keep all but at most two of their bits.
    """
    _, exponent = math.frexp(scale)
    step = math.ldexp(_STEP, exponent - 1)
    shift = 1.5 * 2**23 * step  # where float32 numbers lie `step` apart
    block.add_(shift).sub_(shift)


def _buffers(words: int) -> tuple[Words, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for a block of `words` words, or of `_WORDS` if that is less, and thrice for half as many float32 numbers."""
    words = min(_WORDS, words + words % 2)
    first, second, third = torch.empty(3, words // 2)
    return np.empty(words, dtype=np.uint32), first, second, third


def _check(vector: Vector, scale: float) -> None:
    if vector.dtype != torch.float32 or vector.dim() != 1 or not vector.is_contiguous():
        raise ValueError(f"noise needs a contiguous float32 vector, not {vector.dtype} {list(vector.shape)}")
    if not _LEAST <= scale <= _MOST:
        raise ValueError(f"noise needs a scale from {_LEAST} to {_MOST}, not {scale}; leave noise out to have none")
