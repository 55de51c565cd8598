"""The privacy-utility optimiser: which noise, clip and cohort give the best model for an epsilon.

Noise is never searched: for every epsilon and sampling rate it is solved for. The clip norm is sought by doubling and
halving from the best one known, and a larger epsilon begins where the smaller one ended.

Every trial on private data spends, and the choice of the best trial is a release of its own (Papernot and Steinke,
"Hyperparameter tuning with Rényi differential privacy", 2022). So this is for public or made-up data like the private
ones; what all trials would have cost together is told.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from koinon.core.errors import AdmissionError, Unavailable
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.privacy.accountant import Guarantee, spent
from koinon.privacy.events import Event, Gaussian, PoissonSampled, Repeated, Together, Unprotected
from koinon.run.private import Study, better, judged_by
from koinon.update.noise import GaussianNoise

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
RATES = (0.1,)
STEPS = 4
"""Doublings and halvings of the clip norm that are tried from where a search begins."""


class Trial(msgspec.Struct, frozen=True):
    """One training under a setting.

    Attributes:
        epsilon: What it spends on all rounds; None for the pilot, which has no noise.
        rate: A client's chance to take part in a round.
        clip_norm: Largest L2 norm of an update; of the pilot, the median of what it saw.
        noise_multiplier: Standard deviation of the noise / clip norm; 0 for the pilot.
        metrics: Of the last model, None where a value was not finite.
        failure: Why there is none, or empty.
        seconds: How long it took.
    """

    epsilon: float | None
    rate: float
    clip_norm: float
    noise_multiplier: float = 0.0
    metrics: dict[str, float | None] = {}
    failure: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Search:
    """What is sought.

    Attributes:
        epsilons: Ascending; the settings are sought for each.
        rates: Sampling rates to try.
        clip_norms: Clip norms to try; None seeks them, from a pilot without noise.
        metric: What is compared; None takes the app's first score.
        target: A value of the metric; the search ends with the first epsilon that reaches it. None: all are tried.

    Raises:
        AdmissionError: if there is nothing to try.
    """

    epsilons: tuple[float, ...] = EPSILONS
    rates: tuple[float, ...] = RATES
    clip_norms: tuple[float, ...] | None = None
    metric: str | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        for name in ("epsilons", "rates", "clip_norms"):
            values = getattr(self, name)
            if values is not None and not (values and all(value > 0 for value in values)):
                raise AdmissionError(f"{name} are {values}; give at least one, each > 0")
        if max(self.rates) > 1:
            raise AdmissionError(f"a sampling rate of {max(self.rates):g} is above 1; 0.1 is usual")


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        metric: What was compared.
        trials: All of them, in order, the pilot first if there was one.
        frontier: The best trial of each epsilon that has one, ascending.
        chosen: The first on the frontier that reaches the target, or the last without one; None if there is none.
        cost: What the noisy trials would have cost one client together, on private data.
    """

    metric: str
    trials: tuple[Trial, ...]
    frontier: tuple[Trial, ...]
    chosen: Trial | None
    cost: Guarantee

    @property
    def pilot(self) -> Trial | None:
        """The trial without noise."""
        return next((trial for trial in self.trials if trial.epsilon is None), None)


def tune(
    federation: Federation,
    population: Population,
    search: Search,
    folder: Path,
    *,
    delta: float,
    seed: int = 0,
    tell: Callable[[Trial, str], None] = lambda trial, metric: None,
) -> Tuned:
    """Seek the best setting for each epsilon. Trials that a search with the same definition made before are not made again.

    Args:
        folder: Where trials are kept.
        delta: Of the guarantees.
        tell: Is told of every trial that was made, and of the metric.

    Raises:
        AdmissionError: if the app cannot be tuned; names the cure.
        Unavailable: if trials cannot be kept.
    """
    study = Study(federation, population, delta, seed, folder / "run")
    tuning = _Tuning(study, search, _Kept(folder / _name(study)), tell)
    frontier, chosen = [], None
    for epsilon in sorted(search.epsilons):
        best = tuning.best(epsilon)
        if best is None:
            continue
        frontier.append(best)
        chosen = best
        if search.target is not None:
            value = tuning.value(best)
            if value is not None and not better(tuning.metric)(search.target, value):
                break
            chosen = None
    made = tuple(tuning.trials)
    return Tuned(tuning.metric, made, tuple(frontier), chosen, _cost(made, federation.rounds, delta))


@dataclass
class _Tuning:
    study: Study
    search: Search
    kept: "_Kept"
    tell: Callable[[Trial, str], None]
    trials: list[Trial] = field(default_factory=list)
    metric: str = ""
    _start: float = 1.0

    def __post_init__(self) -> None:
        if self.search.clip_norms is None:
            pilot = self._trial(Trial(None, max(self.search.rates), 0.0), self._pilot)
            self._start = pilot.clip_norm / 2

    def best(self, epsilon: float) -> Trial | None:
        """The best trial of an epsilon; None if all failed."""
        found: Trial | None = None
        for rate in self.search.rates:
            for trial in self._tried(epsilon, rate):
                if self.value(trial) is not None and (found is None or self._beats(trial, found)):
                    found = trial
        if found is not None:
            self._start = found.clip_norm
        return found

    def value(self, trial: Trial) -> float | None:
        """What a trial is judged by."""
        return trial.metrics.get(self.metric)

    def _tried(self, epsilon: float, rate: float) -> Sequence[Trial]:
        if self.search.clip_norms is not None:
            return [self._at(epsilon, rate, norm) for norm in self.search.clip_norms]
        best = self._at(epsilon, rate, self._start)
        tried = [best]
        for factor in (0.5, 2.0):
            for _ in range(STEPS):
                tried.append(self._at(epsilon, rate, best.clip_norm * factor))
                if not self._beats(tried[-1], best):
                    break
                best = tried[-1]
            if best.clip_norm != self._start:
                break  # what is better in one direction is not in the other
        return tried

    def _beats(self, one: Trial, other: Trial) -> bool:
        first, second = self.value(one), self.value(other)
        return first is not None and (second is None or better(self.metric)(first, second))

    def _at(self, epsilon: float, rate: float, clip_norm: float) -> Trial:
        clip_norm = float(f"{clip_norm:.3g}")
        return self._trial(Trial(epsilon, rate, clip_norm), lambda: self._noisy(epsilon, rate, clip_norm))

    def _trial(self, asked: Trial, make: Callable[[], Trial]) -> Trial:
        done = self.kept.find(asked)
        if done is None:
            done = make()
            self.kept.keep(asked, done)
            self.tell(done, self.metric)
        if done.metrics and not self.metric:
            self.metric = judged_by(done.metrics, self.search.metric)
        if done not in self.trials:
            self.trials.append(done)
        return done

    def _pilot(self) -> Trial:
        rate = max(self.search.rates)
        run, norm = self.study.pilot(rate)
        return Trial(None, rate, float(f"{norm:.3g}"), 0.0, self.study.values(run), "", run.seconds)

    def _noisy(self, epsilon: float, rate: float, clip_norm: float) -> Trial:
        made = self.study.attempt(lambda: self.study.central(epsilon, rate, clip_norm))
        if isinstance(made, str):
            return Trial(epsilon, rate, clip_norm, failure=made)
        federation, run = made
        (noise,) = (stage for stage in federation.strategy.stages.stages if isinstance(stage, GaussianNoise))
        return Trial(epsilon, rate, clip_norm, noise.noise_multiplier, self.study.values(run), "", run.seconds)


@dataclass
class _Kept:
    """Trials on the disk, one on each line: what was asked, and what came of it."""

    path: Path
    _known: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        except OSError as error:
            raise Unavailable(f"cannot keep trials in {self.path}: {error.strerror}") from error
        for line in lines:
            try:
                asked, done = msgspec.json.decode(line, type=tuple[Trial, Trial])
            except msgspec.DecodeError:  # the process was killed while it wrote the line
                continue
            self._known[_key(asked)] = done

    def find(self, asked: Trial) -> Trial | None:
        return self._known.get(_key(asked))

    def keep(self, asked: Trial, done: Trial) -> None:
        self._known[_key(asked)] = done
        try:
            with self.path.open("ab") as file:
                file.write(b"\n" + msgspec.json.encode((asked, done)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable(f"cannot keep a trial in {self.path}: {error.strerror}") from error


def _key(asked: Trial) -> str:
    return json.dumps([asked.epsilon, asked.rate, asked.clip_norm])


def _name(study: Study) -> str:
    """A file for each definition, population and seed, so that no trial is taken for one of another."""
    federation = study.federation
    parts = (federation.digest, federation.rounds, len(study.population), study.delta, study.seed)
    return f"trials-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}.jsonl"


def _cost(trials: Sequence[Trial], rounds: int, delta: float) -> Guarantee:
    def released() -> Iterator[Event]:
        for trial in trials:
            if trial.epsilon is None:
                yield Unprotected("a pilot without noise")
            elif trial.noise_multiplier:
                yield Repeated(PoissonSampled(trial.rate, Gaussian(trial.noise_multiplier)), rounds)

    return spent(Together(tuple(released())), delta, "add-remove", "client")
