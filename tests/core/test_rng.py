"""Laws of the one source of randomness."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.rng import generator, integer

SEEDS = st.integers(-(2**70), 2**70)
PURPOSES = st.text(st.characters(exclude_characters="\x1f", codec="utf-8"), max_size=8)  # constants in the code
ARGUMENTS = st.tuples(SEEDS, PURPOSES, st.integers(0, 2**40), st.text(max_size=8))


def draws(*arguments, count=8):
    return torch.randint(2**62, (count,), generator=generator(*arguments)).tolist()


@given(ARGUMENTS)
def test_equal_arguments_give_equal_streams(arguments):
    assert draws(*arguments) == draws(*arguments)


@given(ARGUMENTS, ARGUMENTS)
def test_different_arguments_give_different_streams(one, other):
    assert (draws(*one) == draws(*other)) == (one == other)


@given(ARGUMENTS, st.integers(0, 3))
def test_changing_any_one_argument_changes_the_stream(arguments, which):
    changed = list(arguments)
    changed[which] = changed[which] + ("x" if isinstance(changed[which], str) else 1)
    assert draws(*arguments) != draws(*changed)


@given(SEEDS)
def test_seeds_are_not_folded_to_32_or_64_bits(seed):
    assert len({tuple(draws(seed + offset, "p")) for offset in (0, 2**32, 2**63, 2**64)}) == 4


def test_many_streams_have_no_common_first_draw():
    firsts = [tuple(draws(seed, "birthday", count=2)) for seed in range(20_000)]
    assert len(set(firsts)) == len(firsts)


def test_first_draws_over_streams_are_uniform():
    firsts = torch.tensor([torch.rand((), generator=generator(3, "train", client=str(i))).item() for i in range(8_000)])
    counts = torch.histc(firsts, bins=20, min=0, max=1)
    chi_square = ((counts - 400) ** 2 / 400).sum().item()  # 19 degrees of freedom
    assert chi_square < 43.8  # the 99.9 % quantile


def test_draws_of_one_stream_are_uniform_and_pass_its_refills():
    values = torch.rand(100_000, generator=generator(3, "long"))
    counts = torch.histc(values, bins=100, min=0, max=1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum().item()  # 99 degrees of freedom
    assert 60 < chi_square < 149  # between the 0.1 % and 99.9 % quantiles
    pairs = torch.corrcoef(torch.stack((values[:-1], values[1:])))[0, 1].abs().item()
    assert pairs < 0.011  # 3.3 standard errors


def test_streams_of_one_seed_are_uncorrelated():
    normal = torch.stack([torch.randn(20_000, generator=generator(0, "p", round)) for round in range(6)])
    off_diagonal = torch.corrcoef(normal) - torch.eye(6)
    assert off_diagonal.abs().max().item() < 0.03  # 4 standard errors


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draws(1, "p")
    assert torch.equal(before, torch.get_rng_state())


def test_integer_draws_63_bits():
    rng = generator(0, "p")
    values = [integer(rng) for _ in range(2000)]
    assert all(0 <= value < 2**63 for value in values)
    assert len(set(values)) == 2000
    assert max(values) > 2**62.9 and min(values) < 2**60
