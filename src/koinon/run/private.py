"""An app's federation under another protection, and what it then comes to: what the studies of privacy run."""

import math
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from koinon.core.errors import AdmissionError, ClientFailed
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.learn.dpsgd import DPSGD
from koinon.learn.learner import Learner
from koinon.learn.torch import TorchLearner
from koinon.privacy.budget import Budget
from koinon.privacy.calibrate import calibrate
from koinon.run.result import Run
from koinon.run.simulate import simulate
from koinon.server.sampling import Poisson, Sampler
from koinon.strategy.strategy import Strategy
from koinon.update.adaptive import AdaptiveClip
from koinon.update.clip import Clip
from koinon.update.noise import GaussianNoise, Local
from koinon.update.stage import Chain, Stage
from koinon.view.progress import Quiet
from koinon.view.report import tone


@dataclass(frozen=True)
class Study:
    """An app in simulation, whose protection is varied.

    Attributes:
        federation: The app's own; its learner, codec, reducer, server optimizer and test set are kept.
        population: The clients.
        delta: Of every guarantee, in (0, 1).
        seed: Of every run.
        folder: Where runs are while they last.

    Raises:
        AdmissionError: if there is no test set on the server, or the app adds noise itself.
    """

    federation: Federation
    population: Population
    delta: float
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        if self.federation.evaluation.test is None:
            raise AdmissionError(
                "beside noise no client tells metrics, so the server needs a test set; give evaluation=kn.Evaluation(test=…)"
            )
        if self.federation.protections:
            raise AdmissionError("the app adds noise already; take its noise out, so that it can be chosen here")

    def plain(self) -> Run:
        """Without protection, as the app says."""
        return self._run(self.federation)

    def pilot(self, rate: float) -> tuple[Run, float]:
        """A run without noise, clipped to the median of the updates' norms, and that median."""
        stages = (AdaptiveClip(norm=1.0, learning_rate=1.0),)
        run = self._run(self._with(Poisson(rate), stages, self.federation.learner, None))
        told = [norm for record in run.history for norm in record.told.values()]
        return run, median(told[len(told) // 3 :])

    def central(self, epsilon: float, rate: float, clip_norm: float) -> Federation:
        """Noise by the server that spends `epsilon` on all rounds, with secret samples of the clients."""
        noise = calibrate(epsilon, self.delta, rounds=self.federation.rounds, sample_rate=rate).noise_multiplier
        stages = (Clip(clip_norm), GaussianNoise(_rounded_up(noise), cohort=rate * len(self.population)))
        return self._with(Poisson(rate), stages, self.federation.learner, Budget(epsilon, self.delta))

    def local(self, epsilon: float, clip_norm: float) -> Federation:
        """Noise by each client that spends `epsilon` on all rounds, whoever takes part."""
        noise = calibrate(
            epsilon, self.delta, rounds=self.federation.rounds, sampling="none", neighbours="replace-one"
        ).noise_multiplier
        stages = (Clip(clip_norm), Local(GaussianNoise(_rounded_up(noise))))
        budget = Budget(epsilon, self.delta, "replace-one")
        return self._with(self.federation.strategy.sample, stages, self.federation.learner, budget)

    def record(self, epsilon: float, clip_norm: float = 1.0) -> Federation:
        """Noise by each client on its records' gradients that spends `epsilon` on every record.

        Raises:
            AdmissionError: if the learner cannot protect records.
        """
        learner = self.federation.learner
        if not isinstance(learner, TorchLearner):
            raise AdmissionError(f"records are protected by a TorchLearner only, not by {type(learner).__name__}")
        smallest = min(len(self.population[client].train) for client in self.population.ids)
        share = min(1.0, learner.batch_size / smallest)
        steps = self.federation.rounds * DPSGD(1.0, clip_norm, share).steps(learner.epochs)
        noise = calibrate(epsilon, self.delta, rounds=steps, sample_rate=share).noise_multiplier
        protecting = replace(learner, dp=DPSGD(_rounded_up(noise), clip_norm, share))
        return self._with(self.federation.strategy.sample, (), protecting, Budget(epsilon, self.delta))

    def attempt(self, make: Callable[[], Federation]) -> tuple[Federation, Run] | str:
        """A definition and what it comes to, or why it cannot: a refusal or a failure ends no study."""
        try:
            made = make()
            return made, self._run(made)
        except (AdmissionError, ClientFailed) as failure:
            return str(failure)

    def values(self, run: Run) -> dict[str, float | None]:
        """The metrics of a run's last model; None where one is not finite."""
        return {name: value if math.isfinite(value) else None for name, value in run.metrics.items()}

    def _with(self, sample: Sampler, stages: tuple[Stage, ...], learner: Learner, budget: Budget | None) -> Federation:
        strategy: Strategy = replace(self.federation.strategy, sample=sample, stages=Chain(stages))
        evaluation = replace(self.federation.evaluation, federated=False, every=self.federation.rounds)
        return Federation(learner, strategy, self.federation.rounds, evaluation, budget)

    def _run(self, federation: Federation) -> Run:
        """A run that leaves nothing behind but what it came to."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            return simulate(federation, self.population, self.seed, runs=self.folder, progress=Quiet())
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def judged_by(metrics: Collection[str], wanted: str | None) -> str:
    """The metric that a study compares: the wanted one, or the first score, or the loss.

    Raises:
        AdmissionError: if there is no such metric.
    """
    names = sorted(metrics, key=lambda name: tone(name) != "score")
    if wanted is not None and wanted not in names:
        raise AdmissionError(f"there is no metric {wanted}; the app measures {', '.join(names)}")
    return wanted or names[0]


def better(metric: str) -> Callable[[float, float], bool]:
    """Whether the first of two values of a metric is the better one."""
    return (lambda one, other: one > other) if tone(metric) == "score" else (lambda one, other: one < other)


def _rounded_up(noise_multiplier: float) -> float:
    """To four digits that a person can copy, and that spend no more."""
    step = 10.0 ** (math.floor(math.log10(noise_multiplier)) - 3)
    return float(f"{math.ceil(noise_multiplier / step) * step:.4g}")
