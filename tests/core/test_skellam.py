import numpy as np
import pytest
from scipy import stats

from koinon.core.noise import Noise
from koinon.core.skellam import LARGEST, skellam

COUNT = 200_000


@pytest.mark.parametrize("variance", [0.01, 0.5, 3, 19.9, 20.1, 100, 1e4])
def test_draws_have_skellams_distribution(variance):
    drawn = skellam(Noise.seeded(3).of(f"{variance}"), COUNT, variance)
    values = np.arange(drawn.min(), drawn.max() + 1)
    expected = stats.skellam.pmf(values, variance / 2, variance / 2) * COUNT
    seen = np.bincount(drawn - values[0], minlength=len(values))
    often = expected >= 10
    seen = np.append(seen[often], seen[~often].sum())
    expected = np.append(expected[often], COUNT - expected[often].sum())
    kept = expected > 1
    statistic = ((seen[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert stats.chi2.sf(statistic, kept.sum() - 1) > 1e-3
    assert seen[~kept].sum() <= 20


@pytest.mark.parametrize("variance", [1e8, 1e12, LARGEST])
def test_large_ones_are_nearly_normal(variance):
    drawn = skellam(Noise.seeded(4).of(f"{variance}"), COUNT, variance)
    assert stats.kstest(drawn / np.sqrt(variance), "norm").pvalue > 1e-3


def test_noise_decides_everything_and_draws_do_not_repeat():
    first, again = (skellam(Noise.seeded(1), 150_000, 50.0) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, skellam(Noise.seeded(2), 150_000, 50.0))
    assert not np.array_equal(first[: 1 << 16], first[1 << 16 : 1 << 17]), "blocks have noise of their own"
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.01
    assert len(skellam(Noise.seeded(1), 0, 50.0)) == 0


@pytest.mark.parametrize("variance", [0.0, -1.0, 2 * LARGEST, float("nan")])
def test_a_variance_that_cannot_be_drawn_is_refused(variance):
    with pytest.raises(ValueError, match="variance above 0"):
        skellam(Noise.seeded(1), 1, variance)
