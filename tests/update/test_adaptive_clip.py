"""A clip that follows the updates: what it sends, what the noise covers, and that it settles where it should."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import koinon as kn
from koinon.aggregate.bounded import Bounded
from koinon.aggregate.reducer import Matrix
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.types import Cohort, Spec, Update
from koinon.update.stage import Chain, Context
from koinon.view.progress import Quiet

LAYOUT = Layout.of(nn.Linear(100, 400))
LENGTH = LAYOUT.length


def context(told: dict[str, float], cohort: float = 100.0) -> Context:
    return Context(1, Spec(cohort=cohort), LAYOUT, torch.Generator, Noise.seeded(5), told)


def sent(values: list[float], norm: float) -> torch.Tensor:
    stage = kn.AdaptiveClip()
    return stage.on_client({}, Update.of(torch.tensor(values), 1), context({"norm": norm}))[1].delta


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20), st.floats(1e-3, 1e3)
)
def test_what_leaves_is_at_most_one_norm_long_and_says_whether_it_was_clipped(values, norm) -> None:
    vector = sent(values, norm)
    assert float(torch.linalg.vector_norm(vector[:-1].double())) <= 1 + 1e-6
    length = float(torch.linalg.vector_norm(torch.tensor(values).double()))
    assert float(vector[-1]) == (0.5 if length <= norm else -0.5)
    if length <= norm:
        assert torch.allclose(vector[:-1].double() * norm, torch.tensor(values).double(), rtol=1e-5, atol=1e-37 * norm)


@pytest.mark.parametrize("told", [{}, {"norm": math.nan}, {"norm": math.inf}, {"norm": 0.0}, {"norm": -1.0}])
def test_a_server_that_tells_no_norm_gets_nothing(told) -> None:
    with pytest.raises(kn.ProtocolViolation, match="clip norm"):
        kn.AdaptiveClip().on_client({}, Update.of(torch.ones(3), 1), context(told))


@pytest.mark.parametrize(("cohort", "split"), [(22, 1.270), (100, 1.107)])
def test_the_noise_is_split_as_in_the_paper_and_has_the_whole_distribution(cohort, split) -> None:
    chain = Chain((kn.AdaptiveClip(2.0), kn.GaussianNoise(1.1, cohort=cohort)))
    assert kn.GaussianNoise(1.1)._split(0.05 * cohort) == pytest.approx(split, abs=5e-4)
    counts = []
    for seed in range(300):
        noise = Noise.seeded(seed)
        made = Context(1, Spec(), LAYOUT, torch.Generator, noise)
        stage, spec = chain.stages[1], chain.stages[0].admit(Spec())
        total = torch.zeros(LENGTH + 1 if seed == 0 else 3)
        _, noisy = stage.on_server({}, total, Cohort(1, 5, 5.0), Context(1, spec, LAYOUT, made.draws, noise))
        counts.append(float(noisy[-1]))
        if seed == 0:
            law = stats.norm(scale=1 / math.sqrt(1.1**-2 - (0.1 * cohort) ** -2) / cohort)
            assert stats.kstest(noisy[:-1].numpy(), law.cdf).pvalue > 1e-3
    assert stats.kstest(counts, stats.norm(scale=0.05).cdf).pvalue > 1e-3


def test_a_count_that_alone_spends_more_than_all_may_is_refused() -> None:
    with pytest.raises(kn.AdmissionError, match="raise count_noise or the cohort"):
        kn.fedavg(stages=(kn.AdaptiveClip(), kn.GaussianNoise(1.1, cohort=10)))
    kn.fedavg(stages=(kn.AdaptiveClip(), kn.GaussianNoise(1.1, cohort=12)))


def test_the_noise_with_a_count_is_one_release_of_its_multiplier() -> None:
    learner = kn.TorchLearner(lambda: nn.Linear(3, 1), nn.MSELoss())
    strategy = kn.fedavg(stages=(kn.AdaptiveClip(), kn.GaussianNoise(1.5, cohort=50)))
    made = kn.Federation(learner, strategy, 7, kn.Evaluation(federated=False))
    spent = made.protections[0].after(7, 1e-5).epsilon
    assert spent == kn.privacy.epsilon(noise_multiplier=1.5, rounds=7, delta=1e-5, sampling="none")


def test_a_liar_counts_as_one_and_moves_no_further_than_the_norm() -> None:
    rows = Matrix(torch.tensor([[0.3, 0.4, 0.5], [30.0, 40.0, 1e9], [0.0, 0.0, -1e9]]), [1.0] * 3)
    held = Bounded(rows, Spec(l2_bound=1.0, tally=0.05))
    expected = torch.tensor([[0.3, 0.4, 0.5], [0.6, 0.8, 0.5], [0.0, 0.0, -0.5]])
    assert torch.allclose(torch.stack(list(held.columns(0, 3))), expected)
    assert torch.allclose(torch.stack(list(held.columns(2, 3))), expected[:, 2:])
    assert torch.allclose(torch.stack(list(held.columns(0, 2))), expected[:, :2])


def followed(tmp_path, quantile: float, stages: tuple = (), first: float = 0.05) -> kn.Run:
    """A run whose clients move by 0.1, 0.2 .. 1.0: what the clip norm comes to is known."""
    population = kn.Population.of(
        [kn.Samples(torch.full((1, 1), 1.0), torch.full((1, 1), n / 10)) for n in range(1, 11)]
    )
    learner = kn.TorchLearner(
        lambda: nn.Linear(1, 1, bias=False),
        lambda outputs, targets: -(outputs * targets).sum(),  # its gradient is the target, wherever the model is
        functools.partial(torch.optim.SGD, lr=1.0),
    )
    strategy = kn.fedavg(stages=(kn.AdaptiveClip(first, quantile), *stages))
    made = kn.Federation(learner, strategy, 60, kn.Evaluation(federated=False))
    return kn.simulate(made, population, runs=tmp_path, progress=Quiet())


@pytest.mark.parametrize(("quantile", "low", "high"), [(0.5, 0.5, 0.6), (0.9, 0.9, 1.0), (0.2, 0.2, 0.3)])
def test_the_norm_settles_at_its_quantile(quantile, low, high, tmp_path) -> None:
    norms = [record.told["0.norm"] for record in followed(tmp_path, quantile).history]
    assert norms[0] == 0.05 and norms[0] < norms[10] < norms[20]
    assert low * 0.9 <= norms[-1] <= high * 1.1


def test_with_noise_it_settles_as_well(tmp_path) -> None:
    noisy = followed(tmp_path, 0.5, (kn.GaussianNoise(0.2, cohort=10),))
    assert 0.4 <= noisy.history[-1].told["0.norm"] <= 0.8
    assert noisy.epsilon is not None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"norm": 0.0}, "first norm"),
        ({"norm": math.nan}, "first norm"),
        ({"quantile": 1.0}, "quantile between 0 and 1"),
        ({"learning_rate": 0.0}, "positive finite learning_rate"),
        ({"count_noise": math.inf}, "positive finite count_noise"),
    ],
)
def test_settings_out_of_bounds_are_refused(setting, words) -> None:
    with pytest.raises(kn.AdmissionError, match=words):
        kn.AdaptiveClip(**setting)


@pytest.mark.parametrize(
    "stages",
    [
        (kn.AdaptiveClip(), kn.Clip(1.0)),
        (kn.AdaptiveClip(), kn.AdaptiveClip()),
        (kn.AdaptiveClip(), kn.Local(kn.GaussianNoise(1.0))),
        (kn.AdaptiveClip(), kn.ClipL1(1.0), kn.LaplaceNoise(1.0, cohort=100)),
        (kn.Clip(1.0), kn.Local(kn.GaussianNoise(1.0)), kn.AdaptiveClip()),
    ],
)
def test_what_would_change_the_count_is_refused(stages) -> None:
    with pytest.raises(kn.AdmissionError, match="AdaptiveClip"):
        kn.fedavg(stages=stages)


def test_an_owners_largest_norm_is_no_norm_that_follows() -> None:
    assert kn.fedavg(stages=(kn.AdaptiveClip(),)).largest_norm is None
    assert kn.fedavg(stages=(kn.Clip(3.0), kn.AdaptiveClip())).largest_norm == 3.0


@pytest.mark.parametrize("codec", [kn.Quantize(8), kn.TopK(0.1), kn.ErrorFeedback(kn.TopK(0.1))])
def test_a_codec_that_would_lose_the_count_is_refused(codec) -> None:
    with pytest.raises(kn.AdmissionError, match="AdaptiveClip's count"):
        kn.fedavg(stages=(kn.AdaptiveClip(),), codec=codec)
