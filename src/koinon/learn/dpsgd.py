"""Differential privacy for every record of a client: gradients that no single record can move far, and noise on their sum.

Each record's gradient is taken by `torch.func.vmap`, by itself: whatever the module and the loss do, no record can
reach into another's, which is what the clipping bound rests on. Shorter ways, by hooks on the layers, only hold for
modules that keep records apart, and cannot tell those that do not.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from koinon.core.errors import AdmissionError, ClientFailed, KoinonError
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.norm import shrinking
from koinon.core.types import Vector
from koinon.data.dataset import Dataset
from koinon.learn.workspace import Workspace
from koinon.privacy.events import Event, Gaussian, PoissonSampled, Repeated

_BLOCK = 1024
"""Elements whose squares are added up in float32; over millions the sum would fall short, and the bound with it."""

_LEAST, _MOST = 1e-9, 1e9
"""Between these neither squares nor sums in float32 lose anything to underflow or overflow."""


@dataclass(frozen=True)
class DPSGD:
    """Local training that protects each record: at every step, clipped gradients of a secret sample, and noise.

    A training makes ceil(epochs / sample_rate) steps. A step draws every record independently with probability
    `sample_rate`, scales each one's gradient down to `clip_norm`, adds them up, adds Gaussian noise, and divides by the
    expected number of records. It protects whether a record is there and what it says; the number of records, which
    the size of the noise shows, is taken as known to all.

    Source: Abadi et al., "Deep learning with differential privacy" (2016), algorithm 1.

    Attributes:
        noise_multiplier: Standard deviation of the noise on a step's sum / `clip_norm`, 1e-9 to 1e9.
        clip_norm: Largest L2 norm of one record's gradient, over all trainable parameters together, 1e-9 to 1e9.
        sample_rate: Probability that a record takes part in a step, > 0 and <= 1.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    noise_multiplier: float
    clip_norm: float
    sample_rate: float

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "clip_norm"):
            if not _LEAST <= getattr(self, name) <= _MOST:
                raise AdmissionError(
                    f"DPSGD needs a {name} from {_LEAST:g} to {_MOST:g}, not {getattr(self, name)}; 1 is usual"
                )
        if not 0 < self.sample_rate <= 1:
            raise AdmissionError(
                f"DPSGD needs a sample_rate above 0 and up to 1, not {self.sample_rate}; give records per step / records"
            )

    def steps(self, epochs: int) -> int:
        """How many steps see every record `epochs` times in expectation, at least."""
        return math.ceil(epochs / self.sample_rate * (1 - 1e-12))  # 1 / (1/49) is a little above 49

    def release(self, epochs: int) -> Event:
        """What one training releases about a record."""
        return Repeated(PoissonSampled(self.sample_rate, Gaussian(self.noise_multiplier)), self.steps(epochs))

    def admit(self, module: nn.Module, layout: Layout, loss: object, optimizer: torch.optim.Optimizer | None) -> None:
        """Whether such a training keeps its promise.

        Raises:
            AdmissionError: naming the cure.
        """
        for name, part in module.named_modules():
            if _mixes_records(part):
                raise AdmissionError(
                    f"{name or 'the model'} is a {type(part).__name__}, which mixes records, so that none can be protected "
                    "by itself; use nn.GroupNorm"
                )
        for slot in layout.slots:
            if not slot.trainable:
                raise AdmissionError(
                    f"the buffer {slot.name} would leave without noise; register it with persistent=False, and it stays"
                )
        if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and loss.weight is not None and loss.reduction == "mean":
            raise AdmissionError(
                f"class weights cancel out of {type(loss).__name__}'s mean over a single record; multiply each record's loss by "
                "its weight in a function of your own"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise AdmissionError(
                "LBFGS needs more than one gradient for a step, and dp draws only one; use torch.optim.SGD"
            )


@dataclass(frozen=True, slots=True)
class PrivateGradients:
    """What a private training descends by.

    Attributes:
        dp: How each record is protected.
        workspace: The model at its present values; only trainable parameters are in its vector.
        loss: Mean loss of (outputs, targets), a scalar.
        batch_size: Records whose gradients are held at a time, each as large as the model.
    """

    dp: DPSGD
    workspace: Workspace
    loss: Callable[[Any, Any], torch.Tensor]
    batch_size: int

    def draw(self, data: Dataset, noise: Noise) -> Vector:
        """The gradient of one step, float32 `[D]`; `noise` must be of this step alone.

        All that is later made of it, a failure because it is not finite included, tells no more than the event says.
        That does not hold for a failure in here, where the user's own code refuses a record.

        Raises:
            ClientFailed: if the gradient of one record cannot be taken.
        """
        dp = self.dp
        total = torch.zeros(self.workspace.layout.length)
        for indices in self._chosen(len(data), noise.of("sample")):
            add_clipped(total, self._rows(*data.batch(indices)), dp.clip_norm)
        noise.of("gradient").add_gaussian(total, dp.noise_multiplier * dp.clip_norm)
        return total.div_(dp.sample_rate * len(data))  # the actual number would tell who took part

    def _chosen(self, count: int, noise: Noise) -> Iterator[torch.Tensor]:
        """The indices of a Poisson sample, in equal parts of at most `batch_size`; none of an empty one."""
        chosen = (noise.uniform(count) < self.dp.sample_rate).nonzero().flatten()
        parts = math.ceil(len(chosen) / self.batch_size)
        yield from chosen.tensor_split(parts) if parts else ()

    def _rows(self, inputs: Any, targets: Any) -> list[torch.Tensor]:
        """The gradients of each of b records; float32 `[b, elements]`, for each of the layout's slots."""
        module, slots = self.workspace.module, self.workspace.layout.slots
        parameters = {
            slot.name: parameter.detach() for slot, parameter in zip(slots, self.workspace.parameters, strict=True)
        }
        # Copies: what a forward pass writes into them would carry something of these records to the next.
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        of_each = vmap(grad(self._loss_of_one), in_dims=(None, None, 0, 0), randomness="different")
        try:
            gradients = of_each(parameters, buffers, inputs, targets)
        except KoinonError:
            raise
        except Exception as error:
            raise ClientFailed(
                f"the gradient of a single record cannot be taken ({type(error).__name__}: {textwrap.shorten(str(error), 300)}); "
                "dp needs a model and a loss that torch.func.vmap takes: no operation in place on inputs or buffers, no "
                "branch on data, no nn.GRU or nn.RNN"
            ) from error
        ordered = (gradients[slot.name] for slot in slots)
        return [each.reshape(len(each), math.prod(each.shape[1:])).float() for each in ordered]

    def _loss_of_one(
        self, parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], inputs: Any, targets: Any
    ) -> torch.Tensor:
        inputs, targets = tree_map(functools.partial(torch.unsqueeze, dim=0), (inputs, targets))
        outputs = functional_call(self.workspace.module, (parameters, buffers), (inputs,))
        return self.loss(outputs, targets)


def add_clipped(total: Vector, rows: Sequence[torch.Tensor], clip_norm: float) -> None:
    """Add every record's gradient to `total`, in place, each scaled down to L2 norm `clip_norm` when it is longer.

    A gradient that is not finite, or whose square is not, adds nothing: to fail would tell of a single record.

    Args:
        total: float32 `[D]`.
        rows: The gradients' parts in the order of the vector; float32 `[b, d]` each, with D the sum over all d.
        clip_norm: The bound.
    """
    norms = _norms(rows)
    finite = norms.isfinite()
    if not finite.all():
        rows, norms = [row[finite] for row in rows], norms[finite]
    factors = shrinking(norms, clip_norm)
    for part, row in zip(total.split_with_sizes([row.shape[1] for row in rows]), rows, strict=True):
        part.addmv_(row.t(), factors)


def _norms(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of each record over all parts; float64 `[b]`."""
    blocks = []
    for row in rows:
        whole = row.shape[1] // _BLOCK
        body, rest = row[:, : whole * _BLOCK].reshape(len(row), whole, _BLOCK), row[:, whole * _BLOCK :]
        blocks += [torch.linalg.vector_norm(body, dim=2), torch.linalg.vector_norm(rest, dim=1, keepdim=True)]
    norms: torch.Tensor = torch.linalg.vector_norm(torch.cat(blocks, dim=1).double(), dim=1)
    return norms


def _mixes_records(part: nn.Module) -> bool:
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats
