"""Laws of the noise that protects people: the distribution, the tails, and what it depends on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from koinon.core.noise import _WORDS, Noise, _Keystream, _unit

NOISE = Noise.seeded(7)
NAMES = st.tuples(st.text(max_size=4), st.integers(-(2**40), 2**40), st.text(max_size=4))
KINDS = (Noise.add_gaussian, Noise.add_laplace)
LENGTHS = (0, 1, 2, 3, 1000, _WORDS // 2 + 1, _WORDS - 1, _WORDS, _WORDS + 1, 2 * _WORDS + 3)


def gaussian(noise, count, stddev=1.0):
    return noise.add_gaussian(torch.zeros(count), stddev)


def laplace(noise, count, scale=1.0):
    return noise.add_laplace(torch.zeros(count), scale)


def uncorrelated(one, other, errors=4.0):
    """Whether two samples' correlation is within so many standard errors of none."""
    correlation = torch.corrcoef(torch.stack((one.double(), other.double())))[0, 1].item()
    return abs(correlation) < errors / math.sqrt(len(one))


@pytest.mark.parametrize("scale", [1e-3, 3.7])
def test_gaussian_and_laplace_have_their_distributions(scale):
    assert stats.kstest(gaussian(NOISE, 1_000_000, scale).double().numpy(), stats.norm(0, scale).cdf).pvalue > 1e-3
    assert stats.kstest(laplace(NOISE, 1_000_000, scale).double().numpy(), stats.laplace(0, scale).cdf).pvalue > 1e-3


def test_moments_are_those_of_the_scale():
    count = 4_000_000
    normal, double = gaussian(NOISE, count, 2.0).double(), laplace(NOISE, count, 2.0).double()
    assert abs(normal.mean()) < 4 * 2 / count**0.5
    assert abs(normal.square().mean() / 4 - 1) < 4 * (2 / count) ** 0.5
    assert abs((normal / 2).pow(4).mean() / 3 - 1) < 4 * (96 / 9 / count) ** 0.5
    assert abs(double.abs().mean() / 2 - 1) < 4 / count**0.5
    assert abs(double.mean()) < 4 * 8**0.5 / count**0.5


def test_tails_are_as_heavy_as_they_must_be():
    count = 10_000_000
    normal, double = gaussian(NOISE.of("tail"), count), laplace(NOISE.of("tail"), count // 4)
    cases = [(normal, bound, 2 * stats.norm.sf(bound)) for bound in (2, 3, 4, 4.5)]
    cases += [(double, bound, math.exp(-bound)) for bound in (3, 6, 9)]
    for draws, bound, share in cases:
        for side in (draws > bound, draws < -bound):
            expected = len(draws) * share / 2
            assert abs(side.sum().item() - expected) < 4 * expected**0.5, (bound, expected)


def test_near_zero_gaussian_noise_is_even_and_has_no_atom():
    """A cell of the grid that is released has its share of the density, that of exactly zero included."""
    count, step = 4_000_000, 2.0**-10
    cells = (gaussian(NOISE.of("centre"), count) / step).round().int()
    counts = torch.bincount(cells[cells.abs() <= 20] + 20, minlength=41).double()
    expected = count * step * stats.norm.pdf(np.arange(-20, 21) * step)
    chi_square = ((counts.numpy() - expected) ** 2 / expected).sum()
    assert stats.chi2(41).ppf(1e-3) < chi_square < stats.chi2(41).ppf(1 - 1e-3)


def test_below_32_bits_a_uniform_goes_on_to_64():
    count = 100_000
    for word in (0, 1, 1000):
        words = np.full(count, word, dtype=np.uint32)
        drawn = _unit(words, _Keystream(bytes(32)), torch.empty(count)).double().numpy() * 2.0**32 - word
        assert stats.kstest(drawn, "uniform").pvalue > 1e-3
        assert drawn.min() >= 0 and drawn.max() <= 1
    least = _unit(np.zeros(count, dtype=np.uint32), _Keystream(bytes(32)), torch.empty(count)).min()
    assert 7.5 < (-2 * least.log()).sqrt() < 9.42  # in standard deviations; 32 bits alone end at 6.66


def test_uniforms_never_reach_zero_and_grow_with_their_words():
    words = np.array([0, 1, 2, 65_535, 65_536, 65_537, 2**31, 2**32 - 1], dtype=np.uint32)
    drawn = _unit(words, _Keystream(bytes(32)), torch.empty(len(words)))
    assert drawn[0] > 0 and drawn[-1] <= 1 and (drawn.diff() > 0).all()


def test_uniform_fills_0_to_1_evenly_with_53_bits():
    drawn = NOISE.uniform(1_000_001)
    assert drawn.dtype == torch.float64 and drawn.shape == (1_000_001,)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, bins=1000, min=0, max=1)
    assert stats.chi2(999).ppf(1e-3) < ((counts - 1000) ** 2 / 1000).sum() < stats.chi2(999).ppf(1 - 1e-3)
    whole = (drawn * 2.0**53).to(torch.int64)
    assert torch.equal(whole.double() * 2.0**-53, drawn)
    assert abs((whole & 1).double().mean() - 0.5) < 0.002
    assert len(drawn.unique()) == len(drawn)
    assert [len(NOISE.uniform(count)) for count in (0, 1, _WORDS + 1)] == [0, 1, _WORDS + 1]


@pytest.mark.parametrize("draw", [gaussian, laplace, Noise.uniform, lambda *a: gaussian(*a).square()])
def test_draws_of_one_stream_are_uncorrelated(draw):
    """At all distances where the method could tie them: neighbours, halves of a pair, of a block, the next block."""
    drawn = draw(NOISE.of("serial"), 2 * _WORDS)
    for lag in (1, 2, _WORDS // 4, _WORDS // 2, _WORDS):
        assert uncorrelated(drawn[:-lag], drawn[lag:]), lag


def test_streams_of_other_purposes_rounds_and_clients_are_uncorrelated():
    names = [("a",), ("b",), ("a", 1), ("a", 2), ("a", 0, "x"), ("a", 1, "x"), ("a", 1, "y")]
    for draw in (gaussian, laplace, Noise.uniform):
        drawn = torch.stack([draw(noise, 100_000) for noise in (NOISE, *(NOISE.of(*name) for name in names))])
        assert (torch.corrcoef(drawn) - torch.eye(len(drawn))).abs().max() < 4.5 / 100_000**0.5


def test_the_uses_of_one_noise_share_no_keystream():
    count = 100_000
    pairs = gaussian(NOISE, count).view(2, -1).square().sum(0)
    assert uncorrelated(pairs, laplace(NOISE, count)[: count // 2])
    assert uncorrelated(pairs, laplace(NOISE, count // 2))
    assert uncorrelated(pairs[1::2], NOISE.uniform(count // 4))
    assert uncorrelated(laplace(NOISE, count)[1::2], NOISE.uniform(count // 2))


@given(NAMES, NAMES)
def test_a_stream_is_told_apart_by_every_part_of_its_name(one, other):
    assert (NOISE.of(*one) == NOISE.of(*other)) == (one == other)


def test_names_cannot_run_into_each_other():
    names = [("a", 0, "bc"), ("ab", 0, "c"), ("a", 1, "0"), ("a", 10, ""), ("a1", 0, ""), ("", 0, "a"), ("a", 0, "")]
    names += [("a\x1f0", 0, ""), ("a", 0, "\x1f0"), ("a", -1, ""), ("a-", 1, "")]
    assert len({NOISE.of(*name).key for name in names}) == len(names)
    assert NOISE.of("a").of("b") != NOISE.of("b").of("a")


@pytest.mark.parametrize("add", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_gets_the_same_noise_every_time_and_all_of_it(add, length):
    vector = torch.linspace(-1, 1, length)
    before = vector.clone()
    assert add(NOISE, vector, 0.5) is vector
    assert torch.equal(vector, add(NOISE, before.clone(), 0.5))
    assert length < 100 or (vector != before).double().mean() > 0.99
    assert not length or not torch.equal(vector, add(NOISE.of("other"), before.clone(), 0.5))


@pytest.mark.parametrize("add", KINDS)
def test_noise_is_added_to_what_is_there_and_nowhere_else(add):
    around = torch.full((1002,), 3.0)
    add(NOISE, around[1:-1], 1.0)
    assert around[0] == around[-1] == 3.0
    assert torch.allclose(around[1:-1] - 3.0, add(NOISE, torch.zeros(1000), 1.0), atol=2.0**-9)


@pytest.mark.parametrize("add", KINDS)
def test_the_bits_depend_neither_on_threads_nor_on_torchs_seed(add):
    threads, length = torch.get_num_threads(), 2 * _WORDS + 12_345
    drawn = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            drawn.append(add(NOISE, torch.zeros(length), 1.0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(drawn[0], other) for other in drawn)


@pytest.mark.parametrize("add", KINDS)
@given(scale=st.floats(1e-30, 1e30), size=st.floats(0, 1000))
def test_what_is_released_is_a_multiple_of_a_step_below_a_thousandth_of_the_scale(add, scale, size):
    step = 2.0 ** (math.floor(math.log2(scale)) - 10)
    noisy = add(NOISE, torch.linspace(-size, size, 101) * scale, scale).double() / step
    assert torch.equal(noisy, noisy.round())


def test_large_values_keep_float32s_precision():
    values = torch.logspace(3, 30, 1000)
    noisy = NOISE.add_gaussian(values.clone(), 1e-3)
    assert ((noisy - values) / values).abs().max() < 1e-5 and torch.allclose(noisy[300:], values[300:], rtol=4e-7)


@pytest.mark.parametrize("add", KINDS)
@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, 1e-31, 1e31])
def test_a_scale_that_is_none_is_refused(add, scale):
    with pytest.raises(ValueError, match="noise needs a scale"):
        add(NOISE, torch.zeros(3), scale)


@pytest.mark.parametrize("add", KINDS)
@pytest.mark.parametrize("vector", [torch.zeros(3).double(), torch.zeros(2, 2), torch.zeros(6)[::2], torch.zeros(())])
def test_a_vector_that_is_none_is_refused(add, vector):
    with pytest.raises(ValueError, match="contiguous float32 vector"):
        add(NOISE, vector, 1.0)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "0" * 32, bytearray(32)])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(ValueError, match="32 bytes"):
        Noise(key, secret=True)


def test_only_fresh_noise_is_secret():
    fresh = Noise.fresh()
    assert fresh.secret and fresh.of("a").secret
    assert not NOISE.secret and not NOISE.of("a").secret
    assert len({Noise.fresh().key for _ in range(100)}) == 100


@given(st.integers(-(2**70), 2**70), st.integers(1, 2**70))
def test_a_seed_gives_one_key(seed, more):
    assert Noise.seeded(seed) == Noise.seeded(seed) != Noise.seeded(seed + more)


def test_the_key_is_not_shown():
    key = b"sixteen letters." * 2
    for text in (repr(Noise(key, True)), str(Noise(key, True)), f"{Noise(key, True)}"):
        assert "sixteen" not in text and key.hex() not in text and repr(key) not in text


def test_generators_follow_the_key_and_leave_torchs_alone():
    before = torch.get_rng_state()
    drawn = [torch.rand(1000, generator=noise.generator()) for noise in (NOISE, NOISE, NOISE.of("a"))]
    assert torch.equal(drawn[0], drawn[1]) and uncorrelated(drawn[0], drawn[2])
    assert torch.equal(before, torch.get_rng_state())


def test_known_answers():
    """A change of the noise would make a node that is upgraded in the middle of a round send other bytes."""
    noise = Noise(bytes(range(32)), secret=True).of("known", 3, "clinic")
    assert noise.key.hex() == "e20bcc5b195a58a6e0170c2243b2961519104f20161dc675477c5437800b192f"
    assert (gaussian(noise, 6) * 1024).tolist() == [-305, 1754, 709, 529, 488, -28]
    assert (laplace(noise, 6) * 1024).tolist() == [-87, -3036, 1004, 882, -224, 241]
    assert (noise.uniform(2) * 2.0**53).tolist() == [8680807215193727, 3778875375784019]
    drawn = torch.randint(2**62, (2,), generator=noise.generator()).tolist()
    assert drawn == [451388670083124500, 1281927887361665983]
    assert Noise.seeded(5).key.hex() == "0bb2c5acd746fb6819cd207253183830eca1e87d2dce10116f54f2a8f3a97c00"
