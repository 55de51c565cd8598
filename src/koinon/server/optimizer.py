"""The server's step: aggregated update -> next model, by any `torch.optim` class."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from koinon.core.descent import plain_rate
from koinon.core.errors import AdmissionError
from koinon.core.types import Vector

State: TypeAlias = Mapping[str, torch.Tensor]
"""What the optimizer keeps between rounds, by name (`exp_avg`, `momentum_buffer`, `step`); tensors only, so that it
can be saved, and continuing from what was saved gives the same bits."""

MakeServerOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Parameters -> an optimizer; `functools.partial` of any `torch.optim` class whose state is tensors."""

_ADD: MakeServerOptimizer = functools.partial(torch.optim.SGD, lr=1.0)


@dataclass(frozen=True)
class ServerOptimizer:
    """Takes the negative mean update for a gradient, and steps.

    The default, SGD with learning rate 1, is FedAvg: exactly model + update in float32.

    FedAdam of the paper is `functools.partial(torch.optim.Adam, lr=…, betas=(0.9, 0.99), eps=1e-3)`, where eps is
    the paper's tau; torch's Adam corrects the bias of its moments, which the paper leaves out, so its first steps
    are larger. `fused=True`, where a class has it, spares temporaries as large as the model.

    Source: Reddi et al., "Adaptive federated optimization" (2021), algorithm 2.

    Attributes:
        make: Makes the optimizer, anew for every step, on one parameter: the model as a vector.

    Raises:
        AdmissionError: if it cannot be made, asks for a closure, or keeps something other than tensors.
    """

    make: MakeServerOptimizer = _ADD

    def __post_init__(self) -> None:
        if plain_rate(self.make) is not None:
            return
        try:
            made, parameter = self._make(torch.zeros(1))
            parameter.grad = torch.ones(1)
            made.step()
            kept = made.state[parameter]
        except Exception as error:
            raise AdmissionError(
                f"no server optimizer ({type(error).__name__}: {error}); give functools.partial(torch.optim.SGD, lr=1.0) "
                "or another torch.optim class that steps on one vector without a closure"
            ) from error
        odd = [name for name, value in kept.items() if not isinstance(value, torch.Tensor)]
        if odd:
            raise AdmissionError(
                f"{type(made).__name__} keeps {', '.join(odd)}, which is no tensor and cannot be saved; take another class"
            )

    def init(self, length: int) -> State:
        """The state before the first step on models of `length` elements."""
        if plain_rate(self.make) is not None:
            return {}
        made, parameter = self._make(torch.zeros(length))
        return dict(made.state[parameter])

    def step(self, state: State, model: Vector, update: Vector) -> tuple[State, Vector]:
        """The next state and model. Takes all three over: their memory is reused, the caller must drop them.

        Args:
            state: What `init` or the last step returned, or a copy that was saved.
            model: The present model, float32 `[D]`.
            update: The aggregated update, float32 `[D]`.
        """
        if (rate := plain_rate(self.make)) is not None:
            return {}, model.add_(update, alpha=rate)
        made, parameter = self._make(model)
        made.state[parameter].update(state)
        parameter.grad = update.neg_()
        made.step()
        return dict(made.state[parameter]), parameter.detach()

    def _make(self, model: Vector) -> tuple[torch.optim.Optimizer, nn.Parameter]:
        parameter = nn.Parameter(model)
        return self.make([parameter]), parameter
