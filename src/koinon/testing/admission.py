"""Configurations whose privacy could not be honoured, and what Koinon says to each, or does in its place.

    python -m koinon.testing.admission

Builds every one of them, prints what it is told, and ends with exit code 1 if one was let through.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from koinon.aggregate.bounded import Bounded
from koinon.aggregate.reducer import Matrix, Reducer, Rows
from koinon.core.errors import AdmissionError
from koinon.core.noise import Noise
from koinon.core.types import ClientId, Spec, Update, Vector
from koinon.data.dataset import Samples
from koinon.data.population import Population
from koinon.durable.secret import noise_of
from koinon.evaluate.evaluation import Evaluation
from koinon.federation import Federation
from koinon.learn.dpsgd import DPSGD
from koinon.learn.torch import TorchLearner
from koinon.privacy.accountant import epsilon
from koinon.privacy.budget import Budget
from koinon.privacy.events import Gaussian
from koinon.run.result import Run
from koinon.run.simulate import simulate
from koinon.secure.secure_sum import SecureSum
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Sampler, Uniform, Weighted
from koinon.strategy.recipes import fedavg
from koinon.update.adaptive import AdaptiveClip
from koinon.update.clip import Clip
from koinon.update.correlated import CorrelatedNoise
from koinon.update.feedback import ErrorFeedback
from koinon.update.lowrank import LowRank
from koinon.update.noise import GaussianNoise, LaplaceNoise, Local, SkellamNoise
from koinon.update.sparsify import TopK
from koinon.update.stage import Context, OnClient, Stage, State
from koinon.update.weight import Weight
from koinon.update.zstd import Zstd

_QUIET = Evaluation(federated=False)
_CLIP, _NOISE, _SECURE = Clip(1.0), GaussianNoise(1.0, cohort=10), SecureSum(clip=1.0)
_FEEDBACK = ErrorFeedback(TopK(0.1))


@dataclass(frozen=True)
class Refused:
    """A configuration that must be refused.

    Attributes:
        what: What is wrong with it.
        build: Builds it.
        cure: Words that the message must hold.
    """

    what: str
    build: Callable[[], object]
    cure: str

    def said(self) -> str:
        """The message, or what went wrong, after "let through"."""
        try:
            self.build()
        except AdmissionError as refusal:
            return (
                str(refusal) if self.cure in str(refusal) else f"let through without the cure {self.cure!r}: {refusal}"
            )
        return "let through"


@dataclass(frozen=True)
class Corrected:
    """A configuration that is taken, and made to keep its promise.

    Attributes:
        what: What would be wrong with it.
        instead: Says what Koinon does in its place; raises AssertionError if it does not.
    """

    what: str
    instead: Callable[[], str]

    def said(self) -> str:
        """What Koinon does, or what went wrong, after "let through"."""
        try:
            return f"corrected: {self.instead()}"
        except AssertionError:
            return "let through"


class _NoSum(Reducer):
    def admit(self, spec: Spec) -> None:
        pass

    def reduce(self, rows: Rows) -> Vector:
        return torch.zeros(rows.length)


class _ByLoss(Sampler):
    def sample(
        self,
        candidates: Sequence[ClientId],
        round: int,
        rng: torch.Generator,
        sizes: Mapping[ClientId, int] | None = None,
    ) -> list[ClientId]:
        return list(candidates)

    def probability(self, population: int) -> float | None:
        return None


class _Doubling(OnClient):
    """What a stranger's stage may do to a bound, if it says so; one that does not is held to the bound by the server."""

    def admit(self, spec: Spec) -> Spec:
        return replace(spec, l2_bound=None)

    def on_client(self, state: State, update: Update, context: Context) -> tuple[State, Update]:
        return state, replace(update, delta=2 * update.delta)


def built(
    *stages: Stage,
    model: nn.Module | None = None,
    evaluation: Evaluation = _QUIET,
    budget: Budget | None = None,
    sample: Sampler = Everyone(),
    **strategy: Any,
) -> Federation:
    """A small federation with these stages."""
    learner = TorchLearner(model or nn.Linear(2, 1), loss=nn.MSELoss())
    return Federation(learner, fedavg(sample, stages, **strategy), 10, evaluation, budget)


def _records(model: nn.Module, **settings: Any) -> TorchLearner:
    return TorchLearner(model, loss=nn.MSELoss(), dp=DPSGD(1.0, 1.0, 0.1), **settings)


def _correlated(sample: Sampler, separation: int = 5, rounds: int = 10) -> Federation:
    return built(_CLIP, CorrelatedNoise(2.0, rounds, separation, cohort=4), sample=sample)


def _run(federation: Federation, clients: int) -> Run:
    """A simulation that is refused before anything is written."""
    return simulate(federation, Population.of(lambda client: Samples(torch.ones(1, 2), torch.ones(1, 1)), clients))


def _changing() -> Federation:
    return built(AdaptiveClip(), CorrelatedNoise(1.0, 10, 1, cohort=400))


def _total() -> str:
    one = epsilon(noise_multiplier=1.0, rounds=1, delta=1e-5, sampling="none")
    lasts = built(_CLIP, _NOISE, budget=Budget(1.2 * one, 1e-5)).planned
    assert lasts == 1
    return f"an epsilon is always that of all rounds; 1.2 times one round's lasts for {lasts}"


def _seen() -> str:
    (protection,) = built(_CLIP, _NOISE, sample=Uniform(10)).protections
    assert (protection.event, protection.neighbours) == (Gaussian(1.0), "replace-one")
    return "only Poisson, whose cohort is the server's secret, makes epsilon smaller; Uniform counts as no sampling"


def _unclipped() -> str:
    held = Bounded(Matrix(torch.tensor([[30.0, 40.0]]), [9.0]), built(Weight(2), _CLIP, _NOISE).strategy.promised)
    (row,) = held.columns(0, 2)
    assert float(row.norm()) <= 1 + 1e-6 and list(held.weights) == [2]
    return "the server clips what it decoded once more, and cuts its weight to the bound"


def _secret() -> str:
    with tempfile.TemporaryDirectory() as folder:
        noise = noise_of(Path(folder))
    assert noise.secret and noise != Noise.seeded(0)
    return "on a network the key of AES-256 comes from the operating system, never from the run's seed"


_BATCHNORM = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

ROWS: tuple[Refused | Corrected, ...] = (
    Refused("noise before the clip", lambda: built(_NOISE, _CLIP), "put Clip(norm) before it"),
    Refused("noise without a clip", lambda: built(_NOISE), "put Clip(norm) before it"),
    Refused("Laplace noise after an L2 clip", lambda: built(_CLIP, LaplaceNoise(1.0, 10)), "put ClipL1"),
    Refused("a client's noise without a clip", lambda: built(Local(_NOISE)), "put Clip(norm) before it"),
    Refused("a stage after the server's noise", lambda: built(_CLIP, _NOISE, Clip(2.0)), "put the noise last"),
    Refused("weights without a bound", lambda: built(Weight(), _CLIP, _NOISE), "Weight(at_most=...)"),
    Refused("weights after the noise", lambda: built(_CLIP, _NOISE, Weight(5)), "put the noise last"),
    Refused("weights beside a client's noise", lambda: built(Weight(5), _CLIP, Local(_NOISE)), "drop Weight"),
    Refused("weights after a client's noise", lambda: built(_CLIP, Local(_NOISE), Weight(5)), "drop Weight"),
    Refused("a client's noise twice", lambda: built(_CLIP, Local(_NOISE), _CLIP, Local(_NOISE)), "keep one Local"),
    Refused(
        "dividing by the actual number",
        lambda: built(_CLIP, GaussianNoise(1.0), sample=Poisson(0.1)),
        "cohort=updates expected in a round",
    ),
    Refused("a rule that is no sum", lambda: built(_CLIP, _NOISE, reducer=_NoSum()), "reducer=Mean()"),
    Refused("sampling by what clients hold", lambda: built(_CLIP, _NOISE, sample=Weighted(3)), "Poisson(rate)"),
    Refused("sampling that nobody knows", lambda: built(_CLIP, _NOISE, sample=_ByLoss()), "Poisson(rate)"),
    Refused(
        "Poisson's account of a fixed cohort",
        lambda: epsilon(noise_multiplier=1.0, rounds=1, delta=1e-5, sample_rate=0.1, sampling="fixed", population=100),
        "replace-one",
    ),
    Refused("BatchNorm beside the server's noise", lambda: built(_CLIP, _NOISE, model=_BATCHNORM), "use GroupNorm"),
    Refused("BatchNorm in training that protects records", lambda: _records(_BATCHNORM), "use nn.GroupNorm"),
    Refused(
        "raw metrics beside the noise",
        lambda: built(_CLIP, _NOISE, evaluation=Evaluation()),
        "Evaluation(federated=False",
    ),
    Refused(
        "raw metrics beside noise on records",
        lambda: Federation(_records(nn.Linear(2, 1)), fedavg(stages=()), 1),
        "Evaluation(federated=False",
    ),
    Refused("a budget without noise", lambda: built(budget=Budget(1.0, 1e-5)), "add GaussianNoise"),
    Refused("a budget that one round exceeds", lambda: built(_CLIP, _NOISE, budget=Budget(0.1, 1e-5)), "kn.calibrate"),
    Refused(
        "adaptive clip with a count that the noise cannot cover",
        lambda: built(AdaptiveClip(), GaussianNoise(1.1, cohort=10)),
        "raise count_noise or the cohort",
    ),
    Refused("adaptive clip under a client's noise", lambda: built(AdaptiveClip(), Local(_NOISE)), "use Clip"),
    Refused("adaptive clip of noise", lambda: built(_CLIP, Local(_NOISE), AdaptiveClip()), "by Clip(norm)"),
    Refused("a second clip after an adaptive one", lambda: built(AdaptiveClip(), _CLIP, _NOISE), "use Clip"),
    Refused("a stage that undoes the clip", lambda: built(_CLIP, _Doubling(), _NOISE), "put Clip(norm) before it"),
    Refused("correlated noise where anybody can return", lambda: _correlated(Uniform(4)), "RoundRobin(count)"),
    Refused("correlated noise where all return at once", lambda: _correlated(Everyone()), "give separation=1"),
    Refused("correlated noise for too few clients", lambda: _run(_correlated(RoundRobin(4)), 19), "wait for 20"),
    Refused("correlated noise for too many rounds", lambda: _correlated(RoundRobin(4), rounds=9), "rounds=10"),
    Refused("correlated noise with an adaptive clip", _changing, "a clip of fixed norm"),
    Refused(
        "a delta of 1 / clients",
        lambda: _run(built(_CLIP, _NOISE, budget=Budget(50, 0.25)), 4),
        "choose less than 0.25",
    ),
    Corrected("an epsilon of one round for that of all", _total),
    Corrected("amplification where others see who takes part", _seen),
    Corrected("a client that does not clip, or a codec that enlarges", _unclipped),
    Corrected("noise that follows from the seed", _secret),
    Refused("noise beyond what floats hold", lambda: built(Clip(1e25), _NOISE), "out of float32's reach"),
    Refused("a memory of what was left out", lambda: built(_CLIP, _NOISE, codec=_FEEDBACK), "drop ErrorFeedback"),
    Refused("a memory of directions", lambda: built(_CLIP, _NOISE, codec=LowRank(2)), "use Eden or Quantize"),
    Refused("sizes that tell of values", lambda: built(_CLIP, _NOISE, codec=Zstd()), "drop Zstd"),
    Refused("noise within a sum that is none", lambda: built(_CLIP, SkellamNoise(1.0, 10)), "secure=SecureSum"),
    Refused(
        "noise within a sum without a clip", lambda: built(SkellamNoise(1.0, 10), secure=_SECURE), "put Clip(norm)"
    ),
    Refused(
        "noise within a sum of which all can be corrupt",
        lambda: built(_CLIP, SkellamNoise(1.0, 10), secure=SecureSum(clip=1.0, minimum=2), sample=Uniform(20)),
        "raise minimum above 2",
    ),
    Refused(
        "a secret cohort whose members see each other",
        lambda: built(_CLIP, _NOISE, secure=_SECURE, sample=Poisson(0.1)),
        "Uniform(count)",
    ),
    Refused("a secure sum with an adaptive clip", lambda: built(AdaptiveClip(), secure=_SECURE), "fixed norm"),
    Refused("no noise at all", lambda: GaussianNoise(0.0), "positive finite noise_multiplier"),
    Refused("a cohort of none", lambda: GaussianNoise(1.0, cohort=0), "positive finite cohort"),
)


def main() -> int:
    """Print the table."""
    said = [(row.what, row.said()) for row in ROWS]
    width = max(len(what) for what, _ in said)
    for what, words in said:
        print(f"{'FAIL' if words.startswith('let through') else 'pass'}  {what:{width}}  {words}")
    return int(any(words.startswith("let through") for _, words in said))


if __name__ == "__main__":
    sys.exit(main())
