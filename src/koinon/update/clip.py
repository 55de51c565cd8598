"""Bound an update's norm."""

import math
from dataclasses import dataclass, replace

from koinon.core.errors import AdmissionError
from koinon.core.norm import norms, shrinking
from koinon.core.types import Spec, Update
from koinon.update.stage import Context, OnClient, State


@dataclass(frozen=True)
class Clip(OnClient):
    """Scale an update down to L2 norm `norm` when it is longer; shorter ones stay as they are.

    The norm is taken in float64, so that the bound holds to float32 rounding for any length and any values.

    Attributes:
        norm: Largest L2 norm that leaves the client, > 0, in the units of the model's weights.

    Raises:
        AdmissionError: if `norm` is not a positive finite number.
    """

    norm: float

    def __post_init__(self) -> None:
        _check(self, self.norm)

    def admit(self, spec: Spec) -> Spec:
        """The bound is `norm`, or a tighter one that held before."""
        return replace(spec, l2_bound=_tighter(self.norm, spec.l2_bound))

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Clip each update of the batch."""
        length = norms(update.delta)
        return state, replace(update, delta=update.delta * shrinking(length, self.norm))


@dataclass(frozen=True)
class ClipL1(OnClient):
    """Scale an update down to L1 norm `norm` when it is longer, as Laplace noise needs it.

    Attributes:
        norm: Largest sum of magnitudes that leaves the client, > 0; it bounds the L2 norm as well.

    Raises:
        AdmissionError: if `norm` is not a positive finite number.
    """

    norm: float

    def __post_init__(self) -> None:
        _check(self, self.norm)

    def admit(self, spec: Spec) -> Spec:
        """Both norms are bounded."""
        return replace(spec, l1_bound=_tighter(self.norm, spec.l1_bound), l2_bound=_tighter(self.norm, spec.l2_bound))

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Clip each update of the batch."""
        length = norms(update.delta, 1)
        return state, replace(update, delta=update.delta * shrinking(length, self.norm))


@dataclass(frozen=True)
class ClipLayers(OnClient):
    """Scale each of the model's L tensors down to L2 norm `norm` / sqrt(L), so that the whole has at most `norm`.

    Better than `Clip` where a few layers move much more than the others and would leave them nothing.

    Source: McMahan et al., "Learning differentially private recurrent language models" (2018), §2.

    Attributes:
        norm: Largest L2 norm of the whole update, > 0.

    Raises:
        AdmissionError: if `norm` is not a positive finite number.
    """

    norm: float

    def __post_init__(self) -> None:
        _check(self, self.norm)

    def admit(self, spec: Spec) -> Spec:
        """The bound is `norm`, or a tighter one that held before."""
        return replace(spec, l2_bound=_tighter(self.norm, spec.l2_bound))

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Clip each tensor of each update of the batch."""
        slots = context.layout.slots
        delta, most = update.delta.clone(), self.norm / math.sqrt(len(slots))
        for slot in slots:
            part = delta[..., slot.start : slot.stop]
            part *= shrinking(norms(part), most)
        return state, replace(update, delta=delta)


def _tighter(norm: float, bound: float | None) -> float:
    return norm if bound is None else min(norm, bound)


def _check(stage: Clip | ClipL1 | ClipLayers, norm: float) -> None:
    if not (norm > 0 and math.isfinite(norm)):
        raise AdmissionError(f"{type(stage).__name__} needs a positive finite norm, not {norm}")
