"""A clip whose norm nobody has to guess: it follows the updates, and what that tells of them is paid for."""

import math
from dataclasses import dataclass, replace

import torch

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.core.layout import Layout
from koinon.core.norm import norms, shrinking
from koinon.core.types import Cohort, Spec, Update, Vector
from koinon.update.stage import Context, State, Told

_LEAST, _MOST = 1e-20, 1e20


@dataclass(frozen=True)
class AdaptiveClip:
    """Clip updates to a norm that follows a quantile of their norms.

    A client sends its clipped update in units of the clip norm, and behind it, as one more coordinate, whether it was
    clipped. `GaussianNoise` after it covers both together at its own noise multiplier: the count gets what it needs, the
    update a little more than without a count.

    The server tells each round's norm to its clients; before the first round it is `norm`.

    Source: Andrew et al., "Differentially private learning with adaptive clipping" (2021), algorithm 1 and theorem 1.

    Attributes:
        norm: The first clip norm, > 0, in the units of the model's weights.
        quantile: The share of updates that should not be clipped, in (0, 1).
        learning_rate: How fast the norm follows: by a factor exp(-learning_rate · (share - quantile)) each round; > 0.
        count_noise: Standard deviation of the noise on the number of updates that were not clipped / the expected cohort,
            > 0. The less there is, the more noise the updates get.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    norm: float = 0.1
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float = 0.05

    def __post_init__(self) -> None:
        if not _LEAST <= self.norm <= _MOST:
            raise AdmissionError(f"AdaptiveClip needs a first norm from {_LEAST:g} to {_MOST:g}, not {self.norm}")
        if not 0 < self.quantile < 1:
            raise AdmissionError(
                f"AdaptiveClip needs a quantile between 0 and 1, not {self.quantile}; 0.5 is the median"
            )
        for name in ("learning_rate", "count_noise"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise AdmissionError(f"AdaptiveClip needs a positive finite {name}, not {value}")

    def admit(self, spec: Spec) -> Spec:
        """In units of the clip norm an update has at most norm 1."""
        if spec.local_noise:
            raise AdmissionError("AdaptiveClip would measure a client's noise; clip before Local, by Clip(norm)")
        return replace(spec, l2_bound=1.0, l1_bound=None, tally=self.count_noise)

    def init(self, layout: Layout) -> State:
        """The first norm."""
        return {"norm": torch.tensor(self.norm, dtype=torch.float64)}

    def tell(self, state: State) -> Told:
        """The next round's norm."""
        return {"norm": float(state["norm"])}

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Clip each update of the batch, in units of the round's norm, and say whether it was needed.

        Raises:
            ProtocolViolation: if the server told no norm that can be.
        """
        norm = context.told.get("norm", math.nan)
        if not _LEAST <= norm <= _MOST:
            raise ProtocolViolation(f"the server told {norm} for a clip norm")
        length = norms(update.delta)
        unclipped = (length <= norm).to(torch.float32) - 0.5
        clipped = update.delta * shrinking(length, norm) / norm
        return state, replace(update, delta=torch.cat((clipped, unclipped), dim=-1))

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """Back to the model's units; then let the norm follow."""
        norm, share = float(state["norm"]), float(total[-1]) + 0.5
        followed = norm * math.exp(-self.learning_rate * (share - self.quantile))
        following = torch.tensor(min(max(followed, _LEAST), _MOST), dtype=torch.float64)
        return {"norm": following}, total[:-1].mul_(norm)
