"""Shamir's secret sharing of 32-byte seeds over one prime field.

A seed is a number below 2**256 and the value at 0 of a random polynomial of degree t - 1 over the integers modulo
`PRIME`; a share is its value at a point from 1 on. Any t shares give the seed, and fewer say nothing at all about it.

Source: Shamir, "How to share a secret" (1979).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from koinon.core.errors import ProtocolViolation

Entropy: TypeAlias = Callable[[int], bytes]
"""So many bytes that nobody can predict, as `os.urandom` gives them."""

PRIME = 2**256 + 55 * 2**137 + 1
"""The first prime above 2**256 of the form k * 2**137 + 1: those are proven by one power (Proth's theorem), as a test does."""

SEED_BYTES = 32
"""Length of a secret."""

SHARE_BYTES = 33
"""Length of a share: a number below `PRIME`, little-endian."""

_DRAWN = 48  # reduced modulo the prime, 2**-127 away from uniform


def shares(seed: bytes, threshold: int, points: Sequence[int], entropy: Entropy) -> list[bytes]:
    """A share for every point.

    Args:
        seed: 32 bytes.
        threshold: How many shares reveal it, >= 1.
        points: Distinct, from 1 to 2**31.
        entropy: Source of the polynomial.

    Raises:
        ValueError: if an argument is not so.
    """
    if len(seed) != SEED_BYTES or not 1 <= threshold <= len(points) or len(set(points)) < len(points):
        raise ValueError(f"{len(seed)} bytes cannot be shared at threshold {threshold} among {len(points)} points")
    if not all(0 < point <= 2**31 for point in points):
        raise ValueError("a share's point lies from 1 to 2**31; at 0 lies the secret")
    drawn = entropy(_DRAWN * (threshold - 1))
    higher = [int.from_bytes(drawn[at : at + _DRAWN], "little") % PRIME for at in range(0, len(drawn), _DRAWN)]
    constant, made = int.from_bytes(seed, "little"), []
    for point in points:
        value = 0
        for coefficient in higher:  # points are small, so that it pays to reduce once, at the end
            value = value * point + coefficient
        made.append(((value * point + constant) % PRIME).to_bytes(SHARE_BYTES, "little"))
    return made


def combined(held: Mapping[int, bytes]) -> bytes:
    """The seed of which these are shares, by point: exactly as many as its threshold.

    Raises:
        ProtocolViolation: if they are no shares of any seed.
    """
    points = tuple(sorted(held))
    values = [int.from_bytes(held[point], "little") for point in points]
    if any(len(held[point]) != SHARE_BYTES or value >= PRIME for point, value in zip(points, values, strict=True)):
        raise ProtocolViolation(f"a share is a number below the field's prime in {SHARE_BYTES} bytes, and one is not")
    seed = sum(weight * value for weight, value in zip(weights(points), values, strict=True)) % PRIME
    if seed >> 256:
        raise ProtocolViolation("the shares belong to no seed: someone dealt or returned a wrong one")
    return seed.to_bytes(SEED_BYTES, "little")


@lru_cache(maxsize=1024)
def weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights: the value at 0 is the sum of weights times values at these points."""
    inverses = _inverses([_product(other - point for other in points if other != point) for point in points])
    whole = _product(points)
    down = _inverses(points)
    return tuple(whole * below * inverse % PRIME for below, inverse in zip(down, inverses, strict=True))


def _product(factors: Iterable[int]) -> int:
    product = 1
    for factor in factors:
        product = product * factor % PRIME
    return product


def _inverses(values: Sequence[int]) -> list[int]:
    """All inverses with one division (Montgomery's trick)."""
    before, product = [], 1
    for value in values:
        before.append(product)
        product = product * value % PRIME
    inverse, made = pow(product, -1, PRIME), []
    for value, product in zip(reversed(values), reversed(before), strict=True):
        made.append(inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return made[::-1]
