"""Metrics as sufficient statistics of one batch; batches and clients are added up, then the value is taken.

Shapes, with n examples: binary outputs are logits `[n]` or `[n, 1]`, or two logits `[n, 2]`; multi-class outputs
are logits `[n, C]` or `[n, C, ...]`, as in `nn.CrossEntropyLoss`; regression outputs have as many elements as the
targets. Every `measure` raises ValueError when shapes or values do not fit.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from koinon.core.errors import AdmissionError
from koinon.core.statistics import Ranking, Ratio, Statistic, Variation


class Metric(Protocol):
    """What evaluation measures besides the loss.

    A metric may have one attribute more: `zero`, its statistic of no examples. Without it, it is not told where updates
    are added up secretly, since then all must know beforehand how many numbers it is.
    """

    @property
    def name(self) -> str:
        """What it is called in a history, e.g. `accuracy`."""

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Statistic:
        """The statistic of one batch of at least one example."""


@dataclass(frozen=True)
class Accuracy:
    """Share of targets that the largest logit names; with one logit, a positive one means class 1."""

    name: str = "accuracy"

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """How many are right, and how many there are."""
        if outputs.ndim > 1 and outputs.shape[1] > 1:
            predicted = outputs.argmax(dim=1)
        else:
            predicted, targets = (outputs > 0).flatten(), targets.flatten()
        if predicted.shape != targets.shape:
            raise ValueError(f"{self.name}: outputs {list(outputs.shape)} do not fit targets {list(targets.shape)}")
        return Ratio(float((predicted == targets).sum()), float(targets.numel()))

    @property
    def zero(self) -> Ratio:
        """Of no examples."""
        return Ratio(0.0, 0.0)


@dataclass(frozen=True)
class AUROC:
    """Area under the ROC curve of a binary classifier, from histograms of its probabilities.

    Attributes:
        bins: Equal bins of [0, 1]. The error is at most half the product of the two classes' shares of a bin,
            summed over the bins, so at most half the largest share that a class has in any bin.
    """

    bins: int = 1024
    name: str = "auroc"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise AdmissionError(f"AUROC needs at least 2 bins, not {self.bins}; 1024 is usual")

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ranking:
        """How many examples of either class fall into each bin of the probability of class 1."""
        logits = outputs.double()
        if logits.ndim == 2 and logits.shape[1] == 2:
            logits = logits[:, 1] - logits[:, 0]  # softmax over two classes is the sigmoid of their difference
        logits, targets = _paired(self.name, logits, targets)
        positive = targets == 1
        if not bool((positive | (targets == 0)).all()):
            raise ValueError(f"{self.name}: targets must be 0 or 1")
        if bool(logits.isnan().any()):
            raise ValueError(f"{self.name}: the model's outputs are not numbers")
        bins = (logits.sigmoid() * self.bins).long().clamp_(max=self.bins - 1)
        return Ranking(self._counts(bins[~positive]), self._counts(bins[positive]))

    @property
    def zero(self) -> Ranking:
        """Of no examples."""
        return Ranking((0,) * self.bins, (0,) * self.bins)

    def _counts(self, bins: torch.Tensor) -> tuple[int, ...]:
        return tuple(torch.bincount(bins, minlength=self.bins).tolist())


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean of (output - target)² over all elements."""

    name: str = "mse"

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Sum of squared errors, and how many."""
        predicted, wanted = _paired(self.name, outputs, targets)
        return Ratio(float((predicted - wanted).square().sum()), float(wanted.numel()))

    @property
    def zero(self) -> Ratio:
        """Of no examples."""
        return Ratio(0.0, 0.0)


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean of |output - target| over all elements."""

    name: str = "mae"

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Sum of absolute errors, and how many."""
        predicted, wanted = _paired(self.name, outputs, targets)
        return Ratio(float((predicted - wanted).abs().sum()), float(wanted.numel()))

    @property
    def zero(self) -> Ratio:
        """Of no examples."""
        return Ratio(0.0, 0.0)


@dataclass(frozen=True)
class R2:
    """Coefficient of determination of a regression with one target: 1 - residual / total sum of squares."""

    name: str = "r2"

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Variation:
        """Sums of the targets, their squares, and the squared errors."""
        predicted, wanted = _paired(self.name, outputs, targets)
        if len(wanted) != len(targets):
            raise ValueError(f"{self.name}: needs one target per example, not {list(targets.shape)}")
        return Variation(
            float(len(wanted)),
            float(wanted.sum()),
            float(wanted.square().sum()),
            float((predicted - wanted).square().sum()),
        )

    @property
    def zero(self) -> Variation:
        """Of no examples."""
        return Variation(0.0, 0.0, 0.0, 0.0)


def _paired(name: str, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as flat float64, element by element; a trailing dimension of one is no difference."""
    if _bare(outputs) != _bare(targets):
        raise ValueError(f"{name}: outputs {list(outputs.shape)} do not fit targets {list(targets.shape)}")
    return outputs.double().flatten(), targets.double().flatten()


def _bare(tensor: torch.Tensor) -> torch.Size:
    return tensor.shape[:-1] if tensor.ndim > 1 and tensor.shape[-1] == 1 else tensor.shape
