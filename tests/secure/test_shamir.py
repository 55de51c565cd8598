"""Shamir's shares."""

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.errors import ProtocolViolation
from koinon.secure.shamir import PRIME, SHARE_BYTES, combined, shares, weights


def test_the_field_is_one() -> None:
    """Proth: k * 2**m + 1 with odd k < 2**m is prime if some power (p - 1)/2 is -1."""
    k, m = PRIME >> 137, 137
    assert k * 2**m + 1 == PRIME and k % 2 and k < 2**m
    assert pow(5, (PRIME - 1) // 2, PRIME) == PRIME - 1
    assert 2**256 < PRIME < 2**256 + 2**143


@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
def test_any_threshold_of_shares_gives_the_seed(seed: bytes, threshold: int, data: st.DataObject) -> None:
    points = data.draw(st.lists(st.integers(1, 2**31), min_size=threshold, max_size=20, unique=True))
    made = dict(zip(points, shares(seed, threshold, points, os.urandom), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert combined({point: made[point] for point in chosen}) == seed
    if threshold > 1:
        assert fewer(made, chosen[:-1]) != seed


def fewer(made: dict[int, bytes], chosen: list[int]) -> bytes | None:
    try:
        return combined({point: made[point] for point in chosen})
    except ProtocolViolation:
        return None


def test_a_known_vector() -> None:
    """p(x) = seed + a x + b x**2 by hand, with a and b from a fixed stream."""
    stream = hashlib.shake_256(b"shamir").digest(96)
    b, a = (int.from_bytes(stream[at : at + 48], "little") % PRIME for at in (0, 48))
    seed = bytes(range(32))
    made = shares(seed, 3, [1, 2, 7], lambda count: stream[:count])
    values = [(int.from_bytes(seed, "little") + a * x + b * x * x) % PRIME for x in (1, 2, 7)]
    assert made == [value.to_bytes(SHARE_BYTES, "little") for value in values]


def test_fewer_shares_fit_every_seed() -> None:
    """With one share less, each seed has exactly one polynomial: the shares say nothing."""
    held = {1: 5, 2: 9}  # of threshold 3
    for seed in (0, 1, 2**256 - 1):
        third = (seed - sum(w * v for w, v in zip(weights((1, 2, 3))[:2], held.values(), strict=True))) % PRIME
        third = third * pow(weights((1, 2, 3))[2], -1, PRIME) % PRIME
        whole = {point: value.to_bytes(SHARE_BYTES, "little") for point, value in {**held, 3: third}.items()}
        assert combined(whole) == seed.to_bytes(32, "little")


@pytest.mark.parametrize(
    ("seed", "threshold", "points"),
    [(bytes(31), 1, [1]), (bytes(32), 3, [1, 2]), (bytes(32), 1, [0, 1]), (bytes(32), 2, [1, 1]), (bytes(32), 0, [1])],
)
def test_what_cannot_be_shared_is_refused(seed, threshold, points) -> None:
    with pytest.raises(ValueError, match="share"):
        shares(seed, threshold, points, os.urandom)


@pytest.mark.parametrize("share", [bytes(32), b"\xff" * SHARE_BYTES, PRIME.to_bytes(SHARE_BYTES, "little")])
def test_what_is_no_share_is_refused(share: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        combined({1: share, 2: bytes(SHARE_BYTES)})


def test_shares_of_no_seed_are_refused() -> None:
    with pytest.raises(ProtocolViolation, match="no seed"):
        combined({1: (2**256 + 5).to_bytes(SHARE_BYTES, "little")})
