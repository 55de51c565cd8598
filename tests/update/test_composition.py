"""Codecs by `>>`: what fits, what is refused, and what is known of an update afterwards."""

import pytest
import torch

import koinon as kn
from koinon.aggregate.reducer import Matrix
from koinon.core.types import Spec
from koinon.testing.admission import built

CLIP, NOISE = kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=10)


def test_composition_is_associative_and_fills_what_was_left_open():
    whole = kn.TopK(0.1, then=kn.Rotate(then=kn.Quantize(4)))
    assert kn.TopK(0.1) >> kn.Rotate() >> kn.Quantize(4) == whole
    assert kn.TopK(0.1) >> (kn.Rotate() >> kn.Quantize(4)) == whole
    assert whole >> kn.Zstd(level=3) == kn.Zstd(whole, level=3)


@pytest.mark.parametrize(
    ("compose", "cure"),
    [
        (lambda: kn.Quantize(4) >> kn.TopK(0.1), "put TopK, RandomMask or Rotate first"),
        (lambda: kn.TopK(0.1) >> kn.Quantize(4) >> kn.Sign(), "one codec of values after it"),
        (lambda: kn.Zstd() >> kn.Quantize(4), "Zstd comes last; write Quantize before it"),
        (lambda: kn.Quantize(4) >> kn.Zstd() >> kn.Zstd(), "keep one"),
        (lambda: kn.TopK(0.1) >> kn.LowRank(2), "use LowRank alone"),
        (lambda: kn.TopK(0.1) >> kn.ErrorFeedback(kn.Quantize(4)), r"ErrorFeedback\(TopK\(…\) >> Quantize\(…\)\)"),
        (lambda: kn.ErrorFeedback(kn.TopK(0.1)) >> kn.Zstd(), r"ErrorFeedback\(TopK\(…\) >> Zstd\(…\)\)"),
        (lambda: kn.ErrorFeedback(kn.ErrorFeedback(kn.TopK(0.1))), "keep one"),
        (lambda: kn.Quantize(3), "1, 2, 4 or 8 bits"),
        (lambda: kn.Quantize(4, block=0), "at least one value"),
        (lambda: kn.Eden(8), r"Quantize\(8\)"),
        (lambda: kn.TopK(0.0), r"fraction in \(0, 1\]"),
        (lambda: kn.RandomMask(1.5), r"fraction in \(0, 1\]"),
        (lambda: kn.Sign(block=0), "at least one value"),
        (lambda: kn.LowRank(0), "at least 1"),
        (lambda: kn.Zstd(level=40), "levels from 1 to 19"),
        (lambda: kn.MajorityVote(0.0), "positive finite step"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cure(compose, cure):
    with pytest.raises(kn.AdmissionError, match=cure):
        compose()


@pytest.mark.parametrize("codec", [kn.ErrorFeedback(kn.TopK(0.1)), kn.LowRank(2), kn.Quantize(4) >> kn.Zstd()])
def test_memory_and_telling_sizes_are_refused_beside_the_servers_noise_and_not_beside_a_clients(codec):
    with pytest.raises(kn.AdmissionError, match=r"drop|use"):
        built(CLIP, NOISE, codec=codec)
    assert built(CLIP, kn.Local(NOISE), codec=codec)


def test_what_is_known_of_an_update_after_decoding():
    clipped = Spec(l2_bound=2.0, l1_bound=3.0)
    assert kn.Float32().admit(clipped).l2_bound == 2.0
    assert kn.TopK(0.1).admit(clipped).l2_bound == 2.0
    assert kn.Quantize(4, block=16).admit(clipped).l2_bound == 8.0
    assert kn.Eden(1).admit(clipped).l2_bound is None
    assert kn.ErrorFeedback(kn.TopK(0.1)).admit(clipped).l2_bound is None
    assert kn.TopK(0.1).admit(clipped).l1_bound is None
    held = built(CLIP, NOISE, codec=kn.Eden(1)).spec
    assert held.l2_bound == 1.0, "the server holds updates to it after decoding"
    assert not kn.RandomMask(0.1).admit(clipped).summable


def test_a_definition_names_its_codec():
    plain, small = built(codec=kn.TopK(0.1)), built(codec=kn.TopK(0.1) >> kn.Quantize(4))
    assert len({plain.digest, small.digest, built(codec=kn.Float32()).digest}) == 3


def test_a_vote_moves_every_coordinate_by_one_step_at_most():
    updates = torch.tensor([[1.0, -5.0, 0.0, 9.0], [2.0, -1.0, 0.0, -9.0], [-100.0, -1.0, 0.0, 0.0]])
    vote = kn.MajorityVote(0.5)
    assert vote.reduce(Matrix(updates, [1.0, 1.0, 1.0])).tolist() == [0.5, -0.5, 0.0, 0.0]
    assert vote.reduce(Matrix(updates, [1.0, 1.0, 5.0])).tolist() == [-0.5, -0.5, 0.0, 0.0]
    with pytest.raises(kn.AdmissionError, match="only sums are visible"):
        vote.admit(Spec(visible=False))
