"""Laws of corrections to local gradients."""

import math

import pytest
import torch

from koinon.core.errors import AdmissionError
from koinon.learn.corrections import Proximal


def test_proximal_adds_the_gradient_of_its_penalty():
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 2, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    start = [torch.randn(3, 2, generator=rng, dtype=torch.float64) for _ in range(2)]
    mine = [torch.randn(3, 2, generator=rng, dtype=torch.float64) for _ in range(2)]
    loss = sum((w * g).sum() + 0.35 * ((w - s) ** 2).sum() for w, g, s in zip(weights, mine, start, strict=True))
    expected = torch.autograd.grad(loss, weights)
    Proximal(0.7).correct(mine, [w.detach() for w in weights], start)
    assert all(torch.allclose(a, b) for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize("mu", [-0.1, math.nan])
def test_a_push_away_is_refused(mu):
    with pytest.raises(AdmissionError, match="mu >= 0"):
        Proximal(mu)
