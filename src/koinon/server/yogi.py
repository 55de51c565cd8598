"""Yogi, the one adaptive rule of the literature's servers that `torch.optim` does not have."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class Yogi(torch.optim.Optimizer):
    """Adam whose second moment moves by at most (1 - beta2) · g² per step, so that it cannot jump.

        m <- beta1 m + (1 - beta1) g
        v <- v - (1 - beta2) sign(v - g²) g²
        w <- w - lr m / (sqrt(v) + eps)

    Without bias correction, as in Reddi et al. (2021); `v` starts at `initial`, there tau².
    Source: Zaheer et al., "Adaptive methods for nonconvex optimization" (2018), algorithm 2;
    Reddi et al., "Adaptive federated optimization" (2021), algorithm 2.

    Args:
        params: Parameters to optimize.
        lr: Learning rate, > 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: Added to the root of the second moment, > 0; Reddi et al. call it tau and use 1e-3.
        initial: First value of the second moment, >= 0.

    Raises:
        ValueError: if an argument is outside its bounds, as `torch.optim` classes do.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-3,
        initial: float = 1e-6,
    ) -> None:
        if not (0 < lr < math.inf and 0 < eps < math.inf and 0 <= initial < math.inf):
            raise ValueError(f"Yogi needs lr > 0, eps > 0 and initial >= 0, not {lr}, {eps}, {initial}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Yogi needs betas in [0, 1), not {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "initial": initial})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step along the gradients that the parameters hold; a closure computes them anew first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _move(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _move(parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.full_like(parameter, group["initial"])
    first, second = state["exp_avg"], state["exp_avg_sq"]
    beta1, beta2 = group["betas"]
    first.mul_(beta1).add_(gradient, alpha=1 - beta1)
    signed = torch.addcmul(second, gradient, gradient, value=-1).sign_().mul_(gradient)
    second.addcmul_(signed, gradient, value=beta2 - 1)
    del signed  # on a server each temporary is as large as the model
    parameter.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-group["lr"])
