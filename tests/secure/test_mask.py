"""Keystreams as masks."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from koinon.secure.mask import add_masks

# NIST SP 800-38A, F.1.5: ECB-AES256 of this key's first block is not counter mode from zero; FIPS 197, C.3 gives the cipher.
FIPS_KEY = bytes(range(32))


def test_the_keystream_is_aes_256_in_counter_mode():
    """Block i is AES(key, i), big-endian; the cipher itself is checked against FIPS 197, C.3."""
    ecb = Cipher(algorithms.AES256(FIPS_KEY), modes.ECB()).encryptor()
    assert ecb.update(bytes.fromhex("00112233445566778899aabbccddeeff")).hex() == "8ea2b7ca516745bfeafc49904b496089"
    blocks = b"".join(ecb.update(number.to_bytes(16, "big")) for number in range(8))
    assert add_masks(np.zeros(64, dtype=np.uint16), [FIPS_KEY], []).astype("<u2").tobytes() == blocks
    assert add_masks(np.zeros(32, dtype=np.uint32), [FIPS_KEY], []).astype("<u4").tobytes() == blocks


@given(st.integers(0, 100_000), st.sampled_from([np.uint16, np.uint32]), st.integers(0, 3), st.integers(0, 3))
def test_what_is_added_is_taken_away(length, dtype, plus, minus):
    seeds = [os.urandom(32) for _ in range(plus + minus)]
    vector = np.arange(length, dtype=dtype)
    masked = add_masks(vector.copy(), seeds[:plus], seeds[plus:])
    assert (add_masks(masked, seeds[plus:], seeds[:plus]) == vector).all()


def test_a_prefix_has_the_same_mask():
    """Blocks follow one another without a seam."""
    seed = os.urandom(32)
    whole = add_masks(np.zeros(100_003, dtype=np.uint32), [seed], [])
    assert (add_masks(np.zeros(70_001, dtype=np.uint32), [seed], []) == whole[:70_001]).all()
    assert len(np.unique(whole)) > 99_000


@pytest.mark.parametrize(
    "vector",
    [np.zeros(3), np.zeros(3, dtype=np.int32), np.zeros((2, 2), dtype=np.uint32), np.zeros(8, dtype="u4")[::2]],
)
def test_what_is_no_ring_vector_is_refused(vector):
    with pytest.raises(ValueError, match="contiguous"):
        add_masks(vector, [], [])


def test_a_short_seed_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        add_masks(np.zeros(3, dtype=np.uint16), [bytes(31)], [])
