"""Yogi is its defining equation."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from koinon.server.yogi import Yogi


@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.floats(1e-3, 1),
    st.floats(0, 0.99),
    st.floats(0, 0.999),
    st.floats(1e-3, 1),
    st.floats(0, 1),
)
def test_yogi_is_algorithm_2_of_reddi_et_al(seed, steps, lr, beta1, beta2, tau, initial):
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(7, generator=rng, dtype=torch.float64)
    gradients = torch.randn(steps, 7, generator=rng, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Yogi([parameter], lr=lr, betas=(beta1, beta2), eps=tau, initial=initial)
    w, m, v = start.numpy().copy(), np.zeros(7), np.full(7, initial)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        delta = -gradient.numpy()  # the paper's update points downhill
        m = beta1 * m + (1 - beta1) * delta
        v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        w = w + lr * m / (np.sqrt(v) + tau)
        assert torch.equal(parameter.grad, gradient)
    np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-9, atol=1e-12)


def test_a_closure_is_called_and_a_parameter_without_gradient_stays():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Yogi([used, unused], lr=0.1)

    def closure():
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert (used < 1).all() and (unused == 1).all()


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"eps": 0}, {"initial": -1}, {"betas": (1, 0.9)}, {"betas": (0.9, -0.1)}])
def test_arguments_outside_their_bounds_are_refused(wrong):
    with pytest.raises(ValueError, match="Yogi needs"):
        functools.partial(Yogi, **wrong)([torch.nn.Parameter(torch.ones(1))])
