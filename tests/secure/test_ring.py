"""Fixed point modulo a power of two."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.core.rng import generator
from koinon.secure.mask import add_masks
from koinon.secure.ring import CHECKS, Ring, Tally, bits_needed


@settings(deadline=None)
@given(st.integers(2, 32), st.integers(1, 300), st.floats(1e-6, 1e6), st.sampled_from([-1.0, 1.0]))
def test_the_largest_sum_does_not_overflow(bits, clients, clip, sign):
    """All clients at the clip, all on one side: the sum is right to the step, in every ring that is admitted."""
    try:
        ring = Ring(bits, clients, clip, 5)
    except AdmissionError as error:
        assert bits < bits_needed(clients, 1) and f"needs bits={bits_needed(clients, 1)}" in str(error)
        return
    total = ring.zeros()
    for client in range(clients):
        total = total + ring.encode(torch.full((5,), sign * clip), generator(client, "test"))
    total, _ = ring.decode(ring.unpack(ring.pack(total)), clients)
    assert total.double().numpy() == pytest.approx(sign * clip * clients, rel=1e-6)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_bits_needed_are_the_fewest(clients, levels):
    bits = bits_needed(clients, levels)
    assert clients * levels <= 2 ** (bits - 1) - 1
    assert clients * levels > 2 ** (bits - 2) - 1


@given(st.integers(2, 32), st.integers(1, 100), st.floats(1e-3, 1e3), st.floats(1e-4, 1e2))
def test_a_ring_is_refused_exactly_when_its_sum_could_overflow(bits, clients, clip, step):
    fits = clients * math.ceil(clip / step) <= 2 ** (bits - 1) - 1
    if fits:
        assert Ring(bits, clients, clip, 3, step).levels == math.ceil(clip / step)
    else:
        with pytest.raises(AdmissionError, match=f"needs bits={bits_needed(clients, math.ceil(clip / step))}"):
            Ring(bits, clients, clip, 3, step)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_rounding_is_right_on_average(bits):
    ring = Ring(bits, 3, 1.0, 50_000)
    for value in (0.3 * ring.resolution, -0.71 * ring.resolution, 0.123456, -0.9999):
        decoded, _ = ring.decode(ring.encode(torch.full((50_000,), value), generator(1, "test")), 1)
        away = ((decoded.double().mean() - value) / ring.resolution).item()
        assert abs(away) < 5 * 0.5 / math.sqrt(50_000)
        assert set(np.unique(np.round(decoded.numpy() / ring.resolution)).tolist()) <= {
            math.floor(value / ring.resolution),
            math.ceil(value / ring.resolution),
        }


def test_a_finer_ring_is_closer():
    values = torch.randn(1000, generator=generator(0, "test"))
    errors = []
    for bits in (8, 12, 16, 20, 24):
        ring = Ring(bits, 2, 5.0, 1000)
        errors.append((ring.decode(ring.encode(values, generator(0, "x")), 1)[0] - values).abs().max().item())
        assert errors[-1] <= ring.resolution + 1e-6
    assert errors == sorted(errors, reverse=True)


@settings(deadline=None)
@given(st.integers(6, 32), st.integers(1, 20), st.data())
def test_tallies_add_up_exactly(bits, clients, data):
    tally = Tally(data.draw(st.floats(1.0, 1e9)), data.draw(st.sampled_from([1.0, 0.5, 2.0**-20])))
    if bits <= clients.bit_length():
        return
    ring = Ring(bits, clients, 1.0, 2, tallies=(tally, Tally(1.0)))
    values = data.draw(st.lists(st.floats(-tally.most, tally.most), min_size=clients, max_size=clients))
    total = ring.zeros()
    for value in values:
        total = total + ring.encode(torch.zeros(2), generator(0, "test"), (value, 1.0))
    total = ring.unpack(ring.pack(total))
    exact = sum(round(value / tally.step) for value in values) * tally.step
    assert ring.decode(total, clients)[1] == (exact, clients)


@given(st.integers(2, 32), st.integers(0, 20), st.data())
def test_packing_keeps_what_counts(bits, length, data):
    ring = Ring(bits, 1, 1.0, length)
    words = data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=ring.size, max_size=ring.size))
    encoded = np.array(words, dtype=ring.zeros().dtype)
    packed = ring.pack(encoded)
    assert len(packed) == ring.wire_bytes == math.ceil(bits / 8) * (length + CHECKS)
    assert ring.unpack(packed).tolist() == [word % 2**bits for word in words]


@pytest.mark.parametrize("bits", [2, 12, 16, 32])
def test_a_sum_with_masks_left_in_it_is_noticed(bits):
    ring = Ring(bits, 1, 1.0, 5)
    total = add_masks(ring.encode(torch.zeros(5), generator(0, "x")), [bytes(range(32))], [])
    with pytest.raises(ProtocolViolation, match="did not cancel"):
        ring.decode(total, 1)


def test_a_million_parameters_at_16_bits_take_two_megabytes():
    assert Ring(16, 10, 1.0, 1_000_000, tallies=(Tally(1e6), Tally(1e6))).wire_bytes < 2_000_100


@pytest.mark.parametrize("length", [0, 207, 209])
def test_bytes_of_another_length_are_refused(length):
    with pytest.raises(ProtocolViolation, match="208 were expected"):
        Ring(16, 1, 1.0, 100).unpack(bytes(length))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="tallies"):
        Ring(16, 1, 1.0, 3).encode(torch.zeros(3), generator(0, "x"), (1.0,))
    with pytest.raises(ValueError, match="vector"):
        Ring(16, 1, 1.0, 3).encode(torch.zeros(4), generator(0, "x"))
    for most, step in ((0.0, 1.0), (1.0, 0.0), (1.0, 2.0), (math.inf, 1.0), (1.0, 1e-300)):
        with pytest.raises(AdmissionError, match="tally"):
            Tally(most, step)
    for clients, length in ((0, 1), (1, -1)):
        with pytest.raises(AdmissionError):
            Ring(16, clients, 1.0, length)
