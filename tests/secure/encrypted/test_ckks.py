"""CKKS gives exact whole numbers within the bounds it was chosen for; what is not its own bytes is refused."""

import struct

import numpy as np
import pytest
import tenseal.sealapi as sealapi
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.secure.encrypted import ckks, container
from koinon.secure.encrypted.packing import Packing
from koinon.secure.encrypted.parameters import (
    BLOCK_BYTES,
    DEGREE,
    PRIME_BITS,
    PUBLIC_BYTES,
    SECRET_BYTES,
    SLOTS,
    STANDARD,
    Parameters,
)
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.ring import Ring, Tally

PRIME = 0x0FFFFFFFFFFFC001
SECOND = 0x1FFFFFFFCE001
"""The largest of 60 and 49 bits that SEAL finds for this degree."""


@pytest.fixture(scope="module")
def pair():
    return ckks.keys()


def drawn(seed, length, low=0, high=2**32):
    return np.random.default_rng(seed).integers(low, high, length, dtype=np.uint32)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3 * SLOTS), st.integers(1, 9), st.data())
def test_weighted_sums_are_exact(pair, clients, length, mixing, data):
    public, secret = pair
    parameters = Parameters.of(clients, mixing)
    weights = [data.draw(st.integers(1, mixing)) for _ in range(clients)]
    vectors = [drawn(data.draw(st.integers(0, 99)), length) for _ in range(clients)]
    blocks = [list(ckks.encrypted(parameters, public, vector)) for vector in vectors]
    assert all(len(each) == Parameters.ciphertexts(length) for each in blocks)
    assert {len(block) for each in blocks for block in each} == {BLOCK_BYTES}
    total = ckks.decrypted(parameters, secret, ckks.added(parameters, blocks, weights), length)
    exact = sum((vector * np.uint32(weight) for vector, weight in zip(vectors, weights, strict=True)), np.uint32(0))
    assert np.array_equal(total, exact)


@pytest.mark.parametrize("word", [2**31, 2**31 - 1])
def test_as_many_clients_as_were_reckoned_with_and_the_largest_words_do_not_overflow(pair, word):
    parameters, words = Parameters.of(60, 1), np.full(SLOTS, word, dtype=np.uint32)
    total = ckks.added(parameters, [ckks.encrypted(parameters, pair[0], words) for _ in range(60)], [1] * 60)
    assert (ckks.decrypted(parameters, pair[1], total, SLOTS) == np.uint32(60 * word % 2**32)).all()


def test_noise_is_what_the_scale_was_chosen_for():
    """Over several keys: the standard deviation, and tails as long as those of a Laplace distribution, whose kurtosis is 6."""
    parameters, errors = Parameters.of(4, 1), []
    around = container.containers(parameters.scale)
    for number in range(6):
        public, secret = ckks.keys()
        blocks = [list(ckks.encrypted(parameters, public, drawn(4 * number + each, SLOTS))) for each in range(4)]
        (total,) = ckks.added(parameters, blocks, [1] * 4)
        values = np.array(around.vector(around.context(secret=secret), total, parameters.scale).decrypt())
        errors.append(values - np.rint(values))
    noise = np.stack(errors)
    expected = np.sqrt(4 * (DEGREE / 2) * (1 + 2 * DEGREE / 3) / 12) / parameters.scale
    assert noise.std() == pytest.approx(expected, rel=0.1)
    assert 4.5 < stats.kurtosis(noise, axis=None, fisher=False) < 8
    for clients in (4, 60, 170):
        largest = np.sqrt(clients * (DEGREE / 2) * (1 + 2 * DEGREE / 3) / 12) / Parameters.of(clients, 1).scale
        assert np.exp(-np.sqrt(2) * parameters.tolerance / largest) < 1e-27


def test_clients_beyond_the_noise_are_refused_with_what_will_do():
    EncryptedSum(clip=1.0).admit(170)
    with pytest.raises(AdmissionError, match="170 clients at mixing=1 will do"):
        EncryptedSum(clip=1.0).admit(180)
    with pytest.raises(AdmissionError, match="less mixing"):
        EncryptedSum(clip=1.0, bits=32, mixing=1000)


def test_parameters_have_128_bits_of_security():
    """By SEAL's own table, which is that of the standard, and by the parameters that contexts really have."""
    for degree, most in STANDARD.items():
        assert sealapi.CoeffModulus.MaxBitCount(degree, sealapi.SEC_LEVEL_TYPE.TC128) == most
    assert sum(PRIME_BITS) <= STANDARD[DEGREE]
    written = container._inner(container.containers(1.0).parameters)
    sizes = struct.unpack_from("<BQQ", written)
    assert sizes == (2, DEGREE, 2), "CKKS, degree, primes"
    assert all(prime.to_bytes(8, "little") in written for prime in (PRIME, SECOND))
    assert [PRIME.bit_length(), SECOND.bit_length()] == list(PRIME_BITS)
    assert (PRIME * SECOND).bit_length() == STANDARD[DEGREE]


def test_a_million_parameters_are_at_most_8_2_times_float32():
    assert EncryptedSum(clip=1.0).most_bytes(1_000_000) <= 8.2 * 4_000_000
    assert EncryptedSum(clip=1.0, bits=16).most_bytes(1_000_000) <= 4.1 * 4_000_000
    assert EncryptedSum(clip=1.0, bits=8).most_bytes(1_000_000) <= 2.1 * 4_000_000


@pytest.mark.parametrize("bits", [2, 7, 8, 12, 16, 17, 24, 32])
def test_packed_sums_are_those_of_the_ring(bits):
    clients, length = (1, 5) if bits == 2 else (5, 101)
    ring = Ring(bits, clients, 1.0, length, tallies=() if bits == 2 else (Tally(100.0), Tally(1.0, 1e-3)))
    packing, rng = Packing(ring), np.random.default_rng(bits)
    vectors = []
    for number in range(clients):
        vector = ring.zeros()
        sign = (-1, 1, -1, 1, -1)[number]
        levels = rng.integers(-ring.levels, ring.levels + 1, length) if number else np.full(length, sign * ring.levels)
        vector[:length] = levels.astype(np.int64).astype(vector.dtype)
        vector[length:] = rng.integers(0, 2 ** (bits - clients.bit_length()), ring.size - length)
        vectors.append(vector)
    words = sum((packing.pack(vector) for vector in vectors), np.zeros(packing.count, np.uint32))
    exact = sum(vectors, ring.zeros())
    mask = exact.dtype.type(2**bits - 1)
    assert np.array_equal(packing.unpack(words) & mask, exact & mask)
    assert packing.each == 32 // bits and packing.count == -(-length // packing.each) + ring.size - length


# What comes from others.


def hostile(pair):
    """A context, a true ciphertext's coefficients, and parameters."""
    parameters = Parameters.of(4, 1)
    (block,) = ckks.encrypted(parameters, pair[0], drawn(1, SLOTS))
    return parameters, block


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda block: block[:-8], "65528 bytes where 65536"),
        (lambda block: block + bytes(8), "65544 bytes where 65536"),
        (lambda block: b"", "0 bytes where"),
        (lambda block: b"\xff" * len(block), "is none"),
        (lambda block: PRIME.to_bytes(8, "little") + block[8:], "is none"),
        (lambda block: block[:-8] + (2**64 - 1).to_bytes(8, "little"), "is none"),
    ],
)
def test_what_is_no_ciphertext_is_refused(pair, spoil, message):
    parameters, block = hostile(pair)
    for job in (
        lambda blocks: list(ckks.added(parameters, [[block], blocks], [1, 1])),
        lambda blocks: ckks.decrypted(parameters, pair[1], blocks, SLOTS),
    ):
        with pytest.raises(ProtocolViolation, match=message):
            job([spoil(block)])


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=8, max_size=64), st.integers(0, BLOCK_BYTES - 64))
def test_ciphertexts_with_any_bytes_are_refused_or_add_up_to_nonsense(pair, noise, place):
    """Nothing but a ProtocolViolation comes out of SEAL, whatever the coefficients are."""
    parameters, block = hostile(pair)
    changed = block[:place] + noise + block[place + len(noise) :]
    try:
        total = list(ckks.added(parameters, [[block], [changed]], [1, 1]))
        ckks.decrypted(parameters, pair[1], total, SLOTS)
    except ProtocolViolation:
        return
    assert changed == block


@pytest.mark.parametrize("zeros", ["both", "second"])
def test_a_ciphertext_without_a_key_in_it_is_nothing_to_open(pair, zeros):
    parameters, block = hostile(pair)
    half = BLOCK_BYTES // 2
    sent = bytes(BLOCK_BYTES) if zeros == "both" else block[:half] + bytes(half)
    if zeros == "both":
        assert not ckks.decrypted(parameters, pair[1], [sent], SLOTS).any()
        return
    with pytest.raises(ProtocolViolation, match="no sum of updates"):
        ckks.decrypted(parameters, pair[1], [sent], SLOTS)


def test_a_ciphertext_that_asks_for_the_key_is_not_opened(pair):
    """(0, 2**20) decrypts to the secret key itself; only whole numbers within bounds leave."""
    parameters, _ = hostile(pair)
    asking = bytes(BLOCK_BYTES // 2) + (2**50).to_bytes(8, "little") * DEGREE
    with pytest.raises(ProtocolViolation, match="no sum of updates"):
        ckks.decrypted(parameters, pair[1], [asking], SLOTS)


def test_a_sum_under_another_key_is_not_opened(pair):
    parameters, block = hostile(pair)
    with pytest.raises(ProtocolViolation, match="no sum of updates"):
        ckks.decrypted(parameters, ckks.keys()[1], [block], SLOTS)


def test_streams_of_other_lengths_are_refused(pair):
    parameters, block = hostile(pair)
    with pytest.raises(ProtocolViolation, match="different lengths"):
        list(ckks.added(parameters, [[block, block], [block]], [1, 1]))
    with pytest.raises(ProtocolViolation, match="fewer ciphertexts"):
        ckks.decrypted(parameters, pair[1], [block], SLOTS + 1)
    with pytest.raises(ProtocolViolation, match="more ciphertexts"):
        ckks.decrypted(parameters, pair[1], [block, block], SLOTS)


@pytest.mark.parametrize("size", [PUBLIC_BYTES, SECRET_BYTES])
def test_what_is_no_key_is_refused(size):
    parameters = Parameters.of(4, 1)
    key = b"\xff" * size
    with pytest.raises(ProtocolViolation, match="a key of CKKS is none"):
        if size == PUBLIC_BYTES:
            list(ckks.encrypted(parameters, key, drawn(0, 5)))
        else:
            ckks.decrypted(parameters, key, [], 0)


def test_blocks_are_made_and_added_one_at_a_time(pair):
    """A stream is not read ahead: after one block of the sum, one of each update was read."""
    parameters, read = Parameters.of(3, 1), []

    def update(number):
        for place, block in enumerate(ckks.encrypted(parameters, pair[0], drawn(number, 5 * SLOTS))):
            read.append((number, place))
            yield block

    total = ckks.added(parameters, [update(number) for number in range(3)], [1, 1, 1])
    next(total)
    assert read == [(0, 0), (1, 0), (2, 0)]


def test_without_tenseal_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tenseal", None)
    with pytest.raises(AdmissionError, match=r"pip install 'koinon\[he\]'"):
        container.tenseal()
    monkeypatch.setattr("koinon.secure.encrypted_sum.find_spec", lambda name: None)
    with pytest.raises(AdmissionError, match=r"pip install 'koinon\[he\]'"):
        EncryptedSum(clip=1.0)
