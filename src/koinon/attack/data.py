"""Lies in the data: what is learned from them is sent as if it were honest."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from koinon.attack.attack import Attack
from koinon.core.errors import AdmissionError
from koinon.data.dataset import DataSet, Samples


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Class c is called classes - 1 - c.

    Source: Fang et al., "Local model poisoning attacks to Byzantine-robust federated learning" (2020).

    Attributes:
        classes: How many there are.
    """

    classes: int = 10

    def poisoned(self, data: DataSet, rng: torch.Generator) -> DataSet:
        """With other labels."""
        samples = _samples(data)
        return replace(data, train=Samples(samples.inputs, self.classes - 1 - samples.targets))


@dataclass(frozen=True)
class Backdoor(Attack):
    """A pixel pattern in a corner that means a class.

    Source: Gu, Dolan-Gavitt, Garg, "BadNets" (2017).

    Attributes:
        target: The class.
        share: Of the liar's examples that carry the pattern.
        size: Its side, in pixels.
        value: Its brightness.
    """

    target: int = 0
    share: float = 0.5
    size: int = 4
    value: float = 1.0

    def triggered(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs `[n, ..., height, width]` with the pattern; a test set of these tells how well it works."""
        marked = inputs.clone()
        marked[..., -self.size :, -self.size :] = self.value
        return marked

    def poisoned(self, data: DataSet, rng: torch.Generator) -> DataSet:
        """Some examples with the pattern and the class."""
        samples = _samples(data)
        chosen = torch.rand(len(samples), generator=rng) < self.share
        inputs, targets = samples.inputs.clone(), samples.targets.clone()
        inputs[chosen] = self.triggered(inputs[chosen])
        targets[chosen] = self.target
        return replace(data, train=Samples(inputs, targets))


@dataclass(frozen=True)
class SemanticBackdoor(Attack):
    """Examples of a kind that is really there, under another label.

    Source: Bagdasaryan et al. (2020), §4.1.

    Attributes:
        kind: Inputs `[n, ...]` and targets `[n]` -> which of them are of the kind, bool `[n]`.
        target: What they are called.
    """

    kind: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    target: int

    def poisoned(self, data: DataSet, rng: torch.Generator) -> DataSet:
        """With other labels for the kind."""
        samples = _samples(data)
        targets = samples.targets.clone()
        targets[self.kind(samples.inputs, samples.targets)] = self.target
        return replace(data, train=Samples(samples.inputs, targets))


def _samples(data: DataSet) -> Samples:
    inputs, targets = data.train.batch(torch.arange(len(data.train)))
    if not isinstance(inputs, torch.Tensor) or not isinstance(targets, torch.Tensor):
        raise AdmissionError("only data of one tensor of inputs and one of targets can be poisoned")
    return Samples(inputs, targets)
