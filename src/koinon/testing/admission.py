"""Configurations whose privacy could not be honoured, and what Koinon says to each.

    python -m koinon.testing.admission

Builds every one of them, prints what it is told, and ends with exit code 1 if one was let through.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from koinon.aggregate.reducer import Reducer, Rows
from koinon.core.errors import AdmissionError
from koinon.core.types import ClientId, Spec, Vector
from koinon.evaluate.evaluation import Evaluation
from koinon.federation import Federation
from koinon.learn.dpsgd import DPSGD
from koinon.learn.torch import TorchLearner
from koinon.privacy.accountant import epsilon
from koinon.privacy.budget import Budget
from koinon.server.sampling import Everyone, Poisson, Sampler, Weighted
from koinon.strategy.recipes import fedavg
from koinon.update.clip import Clip
from koinon.update.feedback import ErrorFeedback
from koinon.update.lowrank import LowRank
from koinon.update.noise import GaussianNoise, LaplaceNoise, Local
from koinon.update.sparsify import TopK
from koinon.update.stage import Stage
from koinon.update.weight import Weight
from koinon.update.zstd import Zstd

_QUIET = Evaluation(federated=False)
_CLIP, _NOISE = Clip(1.0), GaussianNoise(1.0, cohort=10)
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


_BATCHNORM = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

ROWS = (
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
    Refused("noise beyond what floats hold", lambda: built(Clip(1e25), _NOISE), "out of float32's reach"),
    Refused("a memory of what was left out", lambda: built(_CLIP, _NOISE, codec=_FEEDBACK), "drop ErrorFeedback"),
    Refused("a memory of directions", lambda: built(_CLIP, _NOISE, codec=LowRank(2)), "use Eden or Quantize"),
    Refused("sizes that tell of values", lambda: built(_CLIP, _NOISE, codec=Zstd()), "drop Zstd"),
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
