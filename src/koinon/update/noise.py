"""Noise that hides any one client: added by the server to the sum, or by each client to its own update.

The server's noise protects clients from whoever sees models, and rests on an honest server. A client's own noise
protects it from the server as well, and costs far more accuracy: it does not shrink as clients are added.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.types import Cohort, Spec, Update, Vector
from koinon.privacy.events import Event, Gaussian, Laplace, Skellam
from koinon.update.stage import Context, OnClient, State, Told

_LEAST, _MOST = 1e-20, 1e20


class Mechanism(Protocol):
    """A kind of noise, in proportion to what it must hide."""

    def bound(self, spec: Spec) -> float:
        """How far one update can move a sum, in the mechanism's norm.

        Raises:
            AdmissionError: if nothing bounds it; the message names the cure.
        """

    def add(self, vector: Vector, bound: float, noise: Noise) -> Vector:
        """The vector with noise for such a bound; in place."""

    @property
    def noise_multiplier(self) -> float:
        """Scale of the noise / the bound, > 0."""

    @property
    def event(self) -> Event:
        """What one such release spends."""


class OnSum(ABC):
    """Base of stages with which the server adds noise to the sum.

    Attributes:
        noise_multiplier: Scale of the noise / the bound, > 0.
        cohort: Updates expected in a round, or None for what the sampling says.
    """

    noise_multiplier: float
    cohort: float | None

    @abstractmethod
    def bound(self, spec: Spec) -> float:
        """How far one client can move what the noise is to cover; raises AdmissionError, naming the cure, if nothing bounds it."""

    @abstractmethod
    def covered(self, total: Vector, expected: float, context: Context) -> Vector:
        """A sum that was divided by `expected`, with its noise; in place."""

    @property
    @abstractmethod
    def event(self) -> Event:
        """What is spent."""

    def admit(self, spec: Spec) -> Spec:
        """The sum is protected from here on; the last stage of a chain."""
        name = type(self).__name__
        _check_scale(self.noise_multiplier * self.bound(spec))
        if spec.weight_bound is None:
            raise AdmissionError(f"{name} needs bounded weights; use Weight(at_most=...), or no Weight at all")
        if spec.tally is not None and not isinstance(self, GaussianNoise):
            raise AdmissionError(
                f"{name} does not cover AdaptiveClip's count; use GaussianNoise, or a clip of fixed norm"
            )
        if self.cohort is None and spec.cohort is None:
            raise AdmissionError(
                f"{name} divides the sum by a number that tells nothing of who took part, and this sampling has none; give "
                f"{name}(..., cohort=updates expected in a round), for instance rate × clients"
            )
        return replace(spec, central_noise=True, cohort=self.cohort or spec.cohort)

    def init(self, layout: Layout) -> State:
        """No state."""
        return {}

    def tell(self, state: State) -> Told:
        """Nothing."""
        return {}

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Leave the update as it is."""
        return state, update

    def on_server(self, state: State, total: Vector, cohort: Cohort, context: Context) -> tuple[State, Vector]:
        """The sum, not the mean: it is divided by the expected cohort, whoever took part. Then the noise."""
        spec = context.spec
        expected = self.cohort or spec.cohort
        assert expected is not None and spec.weight_bound is not None  # since `admit`
        total.mul_(cohort.weight / (expected * spec.weight_bound))
        return state, self.covered(total, expected, context)


class Independent(OnSum):
    """Base of mechanisms: as stages, noise that is new in every round."""

    @abstractmethod
    def add(self, vector: Vector, bound: float, noise: Noise) -> Vector:
        """As in `Mechanism`."""

    def covered(self, total: Vector, expected: float, context: Context) -> Vector:
        """With the round's own noise."""
        return self.add(total, self.bound(context.spec) / expected, context.secret)


@dataclass(frozen=True)
class GaussianNoise(Independent):
    """Gaussian noise on every coordinate of the sum of updates; needs an L2 bound before it.

    With weights up to W and updates up to `norm` the sum of w · update gets noise of standard deviation
    noise_multiplier · norm · W, and is divided by cohort · W.

    Source: McMahan et al., "Learning differentially private recurrent language models" (2018).

    Attributes:
        noise_multiplier: Standard deviation of the noise / the bound on one client's contribution, > 0.
        cohort: Updates expected in a round, > 0, the constant that the sum is divided by, so that the actual number,
            which depends on who took part, is not released. None: what the sampling says (`Uniform(count)` does).

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    noise_multiplier: float
    cohort: float | None = None

    def __post_init__(self) -> None:
        check_noise(self)

    def admit(self, spec: Spec) -> Spec:
        """The sum is protected from here on, a count of clipped updates within it."""
        after = super().admit(spec)
        if after.tally is not None and after.cohort is not None:
            self._split(after.tally * after.cohort)
        return after

    def bound(self, spec: Spec) -> float:
        """The L2 bound."""
        if spec.l2_bound is None:
            raise AdmissionError("GaussianNoise needs an L2 bound; put Clip(norm) before it")
        return spec.l2_bound

    def add(self, vector: Vector, bound: float, noise: Noise) -> Vector:
        """With standard deviation noise_multiplier · bound."""
        return noise.add_gaussian(vector, self.noise_multiplier * bound)

    @property
    def event(self) -> Event:
        """A Gaussian release."""
        return Gaussian(self.noise_multiplier)

    def covered(self, total: Vector, expected: float, context: Context) -> Vector:
        """A count behind the sum gets noise of its own, the rest so much more that together they are one release."""
        if context.spec.tally is None:
            return super().covered(total, expected, context)
        count_stddev = context.spec.tally * expected
        stddev = self._split(count_stddev) * self.bound(context.spec) / expected
        context.secret.of("count").add_gaussian(total[-1:], count_stddev / expected)
        context.secret.add_gaussian(total[:-1], stddev)
        return total

    def _split(self, count_stddev: float) -> float:
        """What multiplies the bound where a count, to which a client adds or takes away 1/2, has noise of its own.

        Source: Andrew et al. (2021), theorem 1.

        Raises:
            AdmissionError: if that noise alone covers a client no better than all should together.
        """
        if self.noise_multiplier >= 2 * count_stddev:
            raise AdmissionError(
                f"AdaptiveClip's count with noise of standard deviation {count_stddev:g} spends more than noise_multiplier "
                f"{self.noise_multiplier:g} allows in all; raise count_noise or the cohort above noise_multiplier / 2"
            )
        return 1 / math.sqrt(self.noise_multiplier**-2 - (2 * count_stddev) ** -2)


@dataclass(frozen=True)
class LaplaceNoise(Independent):
    """Laplace noise on every coordinate of the sum of updates; needs an L1 bound before it. For small models.

    Source: Dwork et al., "Calibrating noise to sensitivity in private data analysis" (2006).

    Attributes:
        noise_multiplier: Scale of the noise (its mean magnitude) / the L1 bound on one client's contribution, > 0.
        cohort: As in `GaussianNoise`.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    noise_multiplier: float
    cohort: float | None = None

    def __post_init__(self) -> None:
        check_noise(self)

    def bound(self, spec: Spec) -> float:
        """The L1 bound."""
        if spec.l1_bound is None:
            raise AdmissionError("LaplaceNoise needs an L1 bound; put ClipL1(norm) before it")
        return spec.l1_bound

    def add(self, vector: Vector, bound: float, noise: Noise) -> Vector:
        """With scale noise_multiplier · bound."""
        return noise.add_laplace(vector, self.noise_multiplier * bound)

    @property
    def event(self) -> Event:
        """A Laplace release."""
        return Laplace(self.noise_multiplier)


@dataclass(frozen=True)
class SkellamNoise(OnSum):
    """Noise that clients add within a secure sum, so that nobody sees a sum without it; needs an L2 bound before it.

    Every client adds whole numbers of its own to its update in the ring, so many that the sum of any survivors holds noise of
    standard deviation noise_multiplier · norm · W at least from those who do not work for the server (`SecureSum.minimum`
    and `corrupt`). If more survive there is more. It needs `secure=SecureSum(…)`, whose steps follow from it.

    Source: Agarwal, Kairouz, Liu, "The Skellam mechanism for differentially private federated learning" (2021).

    Attributes:
        noise_multiplier: As in `GaussianNoise`, > 0.
        cohort: As in `GaussianNoise`.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    noise_multiplier: float
    cohort: float | None = None

    def __post_init__(self) -> None:
        check_noise(self)

    def bound(self, spec: Spec) -> float:
        """The L2 bound."""
        if spec.l2_bound is None:
            raise AdmissionError("SkellamNoise needs an L2 bound; put Clip(norm) before it")
        return spec.l2_bound

    def steps(self, length: int) -> float:
        """Whole numbers that the bound is cut into, for vectors `[length]`: rounding lengthens one by 0.3 %."""
        return max(64.0, 8 * math.sqrt(length))

    def released(self, length: int) -> Event:
        """A round's release of a vector `[length]`."""
        return Skellam(self.noise_multiplier, self.steps(length), length)

    @property
    def event(self) -> Event:
        """Of a single number."""
        return self.released(1)

    def covered(self, total: Vector, expected: float, context: Context) -> Vector:
        """The noise is in the sum already."""
        return total


@dataclass(frozen=True)
class Local(OnClient):
    """Noise that each client adds to its own update before it leaves: local differential privacy.

    The mechanism's `cohort` has no meaning here. What a client says of itself beside the update (its number of
    examples, its metrics) is not told.

    Attributes:
        mechanism: `GaussianNoise(…)` or `LaplaceNoise(…)`.
    """

    mechanism: Mechanism

    def admit(self, spec: Spec) -> Spec:
        """The update is protected from here on, and unbounded."""
        _check_scale(self.mechanism.noise_multiplier * self.mechanism.bound(spec))
        if spec.weighted:
            raise AdmissionError("a weight would tell a client's number of examples beside its noise; drop Weight")
        if spec.local_noise:
            raise AdmissionError("an update is given noise twice; keep one Local stage")
        return replace(spec, local_noise=True, l2_bound=None, l1_bound=None)

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        """Add the noise."""
        bound = self.mechanism.bound(context.spec)
        return state, replace(update, delta=self.mechanism.add(update.delta.clone(), bound, context.secret))


def _check_scale(scale: float) -> None:
    if not _LEAST <= scale <= _MOST:
        raise AdmissionError(
            f"noise of scale {scale:g} is out of float32's reach; clip and multiply to between {_LEAST:g} and {_MOST:g}"
        )


def check_noise(stage: OnSum) -> None:
    """Raise AdmissionError if a stage's noise multiplier or cohort is out of bounds."""
    if not (stage.noise_multiplier > 0 and math.isfinite(stage.noise_multiplier)):
        raise AdmissionError(
            f"{type(stage).__name__} needs a positive finite noise_multiplier, not {stage.noise_multiplier}"
        )
    if stage.cohort is not None and not (stage.cohort > 0 and math.isfinite(stage.cohort)):
        raise AdmissionError(f"{type(stage).__name__} needs a positive finite cohort, not {stage.cohort}")
