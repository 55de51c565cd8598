"""A strategy: everything about a federation but the model and the data."""

from dataclasses import dataclass, field, replace
from functools import cached_property

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.aggregate.rule import Rule
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec
from koinon.learn.corrections import Correction, Remembering
from koinon.secure.secure_sum import SecureSum
from koinon.server.optimizer import ServerOptimizer
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Sampler, Uniform
from koinon.strategy.asynchrony import Asynchrony, check_asynchrony
from koinon.strategy.method import Method
from koinon.strategy.protection import check_noise, check_separation, expected_cohort, separation_of
from koinon.strategy.summing import check_secure, fewest, needs_secure, seen, within
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain


@dataclass(frozen=True)
class Strategy:
    """A frozen composition; the functions in `recipes` make the usual ones.

    Attributes:
        name: What it is called.
        sample: Who takes part in a round.
        stages: What happens to an update on its way.
        codec: How it becomes bytes.
        secure: How updates are added up so that the server learns only their sum; None: it sees each of them.
        downlink: How what a round changed of the model becomes bytes; None: nodes are sent the model.
        reducer: How many updates become one.
        server: How the aggregated update changes the model.
        correction: What is added to local gradients, which may follow from what a client remembers, or None.
        asynchrony: When the model changes where there are no rounds, and what is made of stale updates; None: in rounds.
        method: What local training is made into, or None.

    Raises:
        AdmissionError: if the parts do not fit together.
    """

    name: str
    sample: Sampler = Everyone()
    stages: Chain = Chain()
    codec: Codec = Float32()
    reducer: Reducer = Mean()
    server: ServerOptimizer = field(default_factory=ServerOptimizer)
    correction: Correction | Remembering | None = None
    downlink: Codec | None = None
    secure: SecureSum | None = None
    asynchrony: Asynchrony | None = None
    method: Method | None = None

    def __post_init__(self) -> None:
        self.admit()

    @cached_property
    def before(self) -> Spec:
        """What is known of an update before its first stage."""
        return Spec(cohort=expected_cohort(self.sample))

    @cached_property
    def promised(self) -> Spec:
        """What is known of an update after its last stage, if its client is honest."""
        return self.stages.admit(self.before)

    @cached_property
    def remembering(self) -> Remembering | None:
        """The correction, if it follows from what a client remembers; every client of a round asks."""
        return self.correction if isinstance(self.correction, Remembering) else None

    @property
    def secret_cohort(self) -> int | None:
        """How many are drawn on average, where privacy counts on nobody but the server knowing who; None elsewhere."""
        cohort = self.promised.cohort
        counted_on = self.promised.central_noise and isinstance(self.sample, Poisson)
        return round(cohort) if counted_on and cohort is not None else None

    @property
    def largest_norm(self) -> float | None:
        """The tightest fixed bound on an update's L2 norm on its way, before any noise; None without one."""
        bounds = [spec.l2_bound for spec in self.stages.specs(self.before) if spec.tally is None]
        return min((bound for bound in bounds if bound is not None), default=None)

    @property
    def separation(self) -> int:
        """Rounds from one participation of a client to its next, at least; 1 where nothing counts on it."""
        return separation_of(self.stages) or 1

    @property
    def least(self) -> int:
        """Updates without which a round cannot be added up."""
        return self.least_rows if self.scheme is None else fewest(self.scheme, self.least_rows)

    @property
    def least_rows(self) -> int:
        """Updates, or sums of groups, that the rule needs."""
        return self.reducer.least if isinstance(self.reducer, Rule) else 1

    @property
    def scheme(self) -> SecureSum | None:
        """The secure sum, as far as it does not depend on how long an update is; None without one."""
        return self.secure_sum(1)

    def secure_sum(self, length: int) -> SecureSum | None:
        """The secure sum of updates `[length]`: with the largest weight that the stages allow, the noise that clients add within
        it, and steps that fit the noise."""
        promised, noise = self.promised, within(self.stages)
        most = promised.weight_bound
        if self.secure is None or most is None:
            return None
        weighted = replace(self.secure, max_weight=most)
        if noise is None:
            return weighted
        bound = noise.bound(promised) * most
        step = bound / noise.steps(length) if self.secure.step is None else self.secure.step
        return replace(weighted, noise=noise.noise_multiplier * bound, step=step)

    def carried(self, length: int) -> int:
        """Coordinates of an update on its way, for a model of `length`: as many, and one more where clipped ones are counted."""
        return length + (self.promised.tally is not None)

    def admit(self) -> Spec:
        """What the server is given: the parts, checked against each other in the order of an update's way.

        Raises:
            AdmissionError: from the first part that does not fit, naming the cure.
        """
        spec = self.promised
        if self.secure is None:
            needs_secure(self.stages)
        else:
            check_secure(self.secure, spec, self.sample, self.codec, self.reducer)
        if self.scheme is not None and isinstance(self.sample, Uniform | RoundRobin):
            self.scheme.admit(self.sample.count)
        self.reducer.admit(seen(self.secure, spec))
        check_noise(spec, self.reducer)
        if self.asynchrony is not None:
            check_asynchrony(self.asynchrony, spec, vars(self))
        if self.remembering is not None and (spec.central_noise or spec.local_noise):
            raise AdmissionError(
                f"{type(self.correction).__name__} remembers updates, and would add up the noise of every round; leave the noise "
                "out, or take fedprox(), which remembers nothing"
            )
        if self.method is not None:
            self.method.fit(self.stages, spec, self.codec, self.reducer)
        check_separation(self.stages, self.sample)
        if spec.tally is not None and (self.codec.claims.kept < 1 or self.codec.claims.variance > 0):
            raise AdmissionError(
                f"{type(self.codec).__name__} would lose AdaptiveClip's count, or its neighbours' values beside it; use Float32() "
                "or a clip of fixed norm"
            )
        return replace(self.codec.admit(spec), visible=self.secure is None)
