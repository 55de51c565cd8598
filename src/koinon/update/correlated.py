"""Noise on sums for runs that cannot sample in secret: DP-FTRL."""

import math
from dataclasses import dataclass

from koinon.core.errors import AdmissionError
from koinon.core.types import Spec, Vector
from koinon.privacy.events import Event, Gaussian
from koinon.privacy.factorization import MOST_BANDS, best_bands, coefficients, sensitivity
from koinon.update.noise import OnSum, check_noise
from koinon.update.stage import Context


@dataclass(frozen=True)
class CorrelatedNoise(OnSum):
    """Gaussian noise on the sums of updates, correlated from round to round: DP-FTRL by matrix factorisation.

    A run is one release: its epsilon is that of one Gaussian with `noise_multiplier`, however many rounds it has, and
    rests on no sampling; only on this, that a client takes part at most once in `separation` rounds that follow each
    other, which the server and every node see to. Needs an L2 bound before it, and `Everyone()` or `RoundRobin(…)`.

    Against independent noise at the same epsilon the model that sums the rounds up has less noise, the longer the
    separation the more so: 2.2 times less at 100 rounds and separation 10, 4.3 times at 500 and 50; with separation 1 none.

    Source: Kairouz et al., "Practical and private (deep) learning without sampling or shuffling" (2021); for the
    correlation see `koinon.privacy.factorization`.

    Attributes:
        noise_multiplier: Standard deviation of the noise / the most that one client can change in all rounds together, > 0.
        rounds: The most rounds that a run may have, >= 1.
        separation: Rounds from one participation of a client to its next, >= 1. At most clients // cohort can be kept.
        cohort: As in `GaussianNoise`.
        bands: How many rounds share one draw of noise, 1 to 64; each costs a draw in every round. None: the best number.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    noise_multiplier: float
    rounds: int
    separation: int
    cohort: float | None = None
    bands: int | None = None

    def __post_init__(self) -> None:
        check_noise(self)
        if self.rounds < 1 or self.separation < 1:
            raise AdmissionError(
                f"CorrelatedNoise needs rounds and separation of at least 1, not {self.rounds} and {self.separation}"
            )
        if self.bands is not None and not 1 <= self.bands <= MOST_BANDS:
            raise AdmissionError(
                f"CorrelatedNoise needs 1 to {MOST_BANDS} bands, not {self.bands}; None takes the best"
            )

    def bound(self, spec: Spec) -> float:
        """The L2 bound on what one client can change in all rounds together, seen through the correlation."""
        if spec.l2_bound is None:
            raise AdmissionError("CorrelatedNoise needs an L2 bound; put Clip(norm) before it")
        return spec.l2_bound * sensitivity(self._bands, self.rounds, self.separation)

    @property
    def event(self) -> Event:
        """A Gaussian release: the whole run."""
        return Gaussian(self.noise_multiplier)

    def covered(self, total: Vector, expected: float, context: Context) -> Vector:
        """The noise of earlier rounds is taken back in part; it follows from the run's secret, so none is kept.

        Raises:
            AdmissionError: if the round is beyond those that are covered.
        """
        if context.round > self.rounds:
            raise AdmissionError(f"round {context.round} is beyond the {self.rounds} that CorrelatedNoise covers")
        stddev = self.noise_multiplier * self.bound(context.spec) / expected
        total.neg_()
        for lag, coefficient in enumerate(coefficients(self._bands)[1 : context.round], start=1):
            context.noise_of(context.round - lag).add_gaussian(total, math.fabs(coefficient) * stddev)
        return context.secret.add_gaussian(total.neg_(), stddev)

    @property
    def _bands(self) -> int:
        return self.bands if self.bands is not None else best_bands(self.rounds, self.separation)
