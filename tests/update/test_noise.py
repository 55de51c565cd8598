"""Noise stages: what they refuse, and what comes out of the path that a real round takes."""

import math

import pytest
import torch
from scipy import stats

import koinon as kn
from koinon.aggregate.bounded import Bounded
from koinon.aggregate.reducer import Matrix
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.types import Cohort, Spec, Update
from koinon.update.stage import Chain, Context

LAYOUT = Layout.of(torch.nn.Linear(100, 400))
LENGTH = LAYOUT.length


def context(round: int = 1, cohort: float | None = None, layout: Layout = LAYOUT) -> Context:
    return Context(round, Spec(cohort=cohort), layout, torch.Generator, Noise.seeded(5).of("test"))


def noise_of(chain: Chain, weight: float = 7.0) -> torch.Tensor:
    """What a chain adds on the server to a mean of zeros."""
    _, total = chain.on_server(chain.init(LAYOUT), torch.zeros(LENGTH), Cohort(1, 3, weight), context())
    return total


def test_the_servers_noise_has_the_whole_distribution_that_is_accounted() -> None:
    chain = Chain((kn.Clip(0.5), kn.GaussianNoise(2.0, cohort=20)))
    assert stats.kstest(noise_of(chain).numpy(), stats.norm(scale=2.0 * 0.5 / 20).cdf).pvalue > 1e-3
    laplace = Chain((kn.ClipL1(0.5), kn.LaplaceNoise(2.0, cohort=20)))
    assert stats.kstest(noise_of(laplace).numpy(), stats.laplace(scale=2.0 * 0.5 / 20).cdf).pvalue > 1e-3


def test_a_clients_noise_has_the_whole_distribution_that_is_accounted() -> None:
    chain = Chain((kn.Clip(0.5), kn.Local(kn.GaussianNoise(3.0))))
    update = Update.of(torch.zeros(LENGTH), 9)
    _, sent = chain.on_client(chain.init(LAYOUT), update, context())
    assert stats.kstest(sent.delta.numpy(), stats.norm(scale=1.5).cdf).pvalue > 1e-3
    assert not update.delta.any()  # what was given is not changed
    laplace = Chain((kn.ClipL1(0.5), kn.Local(kn.LaplaceNoise(3.0))))
    _, sent = laplace.on_client(laplace.init(LAYOUT), update, context())
    assert stats.kstest(sent.delta.numpy(), stats.laplace(scale=1.5).cdf).pvalue > 1e-3


def test_noise_does_not_depend_on_who_took_part_and_the_divisor_neither() -> None:
    chain = Chain((kn.Weight(at_most=4), kn.Clip(1.0), kn.GaussianNoise(1e-9, cohort=10)))
    for clients, weights in ((3, 7.0), (0, 0.0), (10, 40.0)):
        mean = torch.full((LENGTH,), 0.5)
        _, total = chain.on_server(chain.init(LAYOUT), mean, Cohort(1, clients, weights), context())
        assert torch.allclose(total, torch.full((LENGTH,), 0.5 * weights / (10 * 4)), atol=1e-7)


def test_equal_secrets_give_equal_noise_and_every_round_has_its_own() -> None:
    chain = Chain((kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=4)))
    first, again, later = (
        chain.on_server({}, torch.zeros(LENGTH), Cohort(1, 4, 4.0), context(round))[1] for round in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert abs(float(torch.corrcoef(torch.stack((first, later)))[0, 1])) < 0.02


def test_the_expected_cohort_is_that_of_the_sampling_unless_it_is_given() -> None:
    chain = Chain((kn.Clip(1.0), kn.GaussianNoise(1.0)))
    _, of_sampling = chain.on_server({}, torch.zeros(LENGTH), Cohort(1, 4, 4.0), context(cohort=50))
    given = Chain((kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=50)))
    _, same = given.on_server({}, torch.zeros(LENGTH), Cohort(1, 4, 4.0), context())
    assert torch.equal(of_sampling, same)


@pytest.mark.parametrize("values", [[0.0], [1e30], [3e38, -3e38, 3e38], [1e-40, 0.0], [0.1] * 1000])
@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e4])
def test_every_clip_holds_its_bound(values: list[float], norm: float) -> None:
    layout = Layout.of(torch.nn.Linear(len(values), 1, bias=False))
    update = Update.of(torch.tensor(values), 1)
    for stage, power in ((kn.Clip(norm), 2), (kn.ClipL1(norm), 1), (kn.ClipLayers(norm), 2)):
        _, clipped = stage.on_client(stage.init(layout), update, context(layout=layout))
        length = float(torch.linalg.vector_norm(clipped.delta, power, dtype=torch.float64))
        assert length <= norm * (1 + 1e-6)
        before = float(torch.linalg.vector_norm(update.delta, power, dtype=torch.float64))
        if max(map(abs, values)) < 1e37 or before <= norm:  # beyond, the factor has few bits left
            assert length == pytest.approx(min(before, norm), rel=1e-5, abs=1e-37)


def test_layers_are_clipped_one_by_one() -> None:
    layout = Layout.of(torch.nn.Linear(3, 1))  # 3 weights, 1 bias
    stage = kn.ClipLayers(math.sqrt(2.0))
    update = Update.of(torch.tensor([30.0, 40.0, 0.0, 0.5]), 1)
    _, clipped = stage.on_client({}, update, context(layout=layout))
    assert torch.allclose(clipped.delta, torch.tensor([0.6, 0.8, 0.0, 0.5]))


def test_the_server_holds_clients_to_their_clip_and_weight() -> None:
    rows = Matrix(torch.tensor([[3.0, 4.0], [0.3, 0.4], [-30.0, 0.0]]), [1.0, 5.0, 100.0])
    held = Bounded(rows, Spec(l2_bound=1.0, weight_bound=2.0))
    assert torch.allclose(torch.stack(list(held.columns(0, 2))), torch.tensor([[0.6, 0.8], [0.3, 0.4], [-1.0, 0.0]]))
    assert list(held.weights) == [1.0, 2.0, 2.0]
    both = Bounded(rows, Spec(l2_bound=1.0, l1_bound=1.0))
    assert torch.stack(list(both.columns(0, 2))).abs().sum(1).max() <= 1 + 1e-6
