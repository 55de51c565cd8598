"""Lies that need no knowledge of the others."""

from dataclasses import dataclass

import torch

from koinon.attack.attack import Attack, Known, lengths
from koinon.data.dataset import DataSet


@dataclass(frozen=True)
class SignFlip(Attack):
    """The opposite of one's own update.

    Attributes:
        scale: How much of it.
    """

    scale: float = 1.0

    def lies(self, known: Known) -> torch.Tensor:
        """- scale · own."""
        return -self.scale * known.own


@dataclass(frozen=True)
class Gaussian(Attack):
    """Noise in place of an update.

    Attributes:
        scale: Its L2 norm / that of one's own update.
    """

    scale: float = 10.0

    def lies(self, known: Known) -> torch.Tensor:
        """Independent of each other."""
        noise = torch.randn(known.own.shape, generator=known.rng)
        return self.scale * lengths(known.own) * noise / lengths(noise)


@dataclass(frozen=True)
class NotFinite(Attack):
    """One's own update with a value that is no number.

    Attributes:
        value: NaN or an infinity.
    """

    value: float = float("nan")

    def lies(self, known: Known) -> torch.Tensor:
        """In the first coordinate."""
        sent = known.own.clone()
        sent[:, 0] = self.value
        return sent


@dataclass(frozen=True)
class Scaled(Attack):
    """One's own update, many times.

    Attributes:
        scale: How many.
    """

    scale: float = 10.0

    def lies(self, known: Known) -> torch.Tensor:
        """Scale · own."""
        return self.scale * known.own


@dataclass(frozen=True)
class Replacement(Attack):
    """The model that the liars want, in place of the mean of all: their updates, scaled by the cohort.

    With a `Backdoor`'s data it plants a back door in one round.

    Source: Bagdasaryan et al., "How to backdoor federated learning" (2020), §4.2.

    Attributes:
        data: What poisons the liars' data.
    """

    data: Attack = Attack()

    def poisoned(self, data: DataSet, rng: torch.Generator) -> DataSet:
        """As `data` says."""
        return self.data.poisoned(data, rng)

    def lies(self, known: Known) -> torch.Tensor:
        """Own · updates of the round / liars."""
        everyone = len(known.honest) + known.liars
        return known.own * (everyone / known.liars)


@dataclass(frozen=True)
class FreeRider(Attack):
    """No training: nothing, or a little noise so that it does not look like nothing.

    Source: Fraboni, Vidal, Lorenzi, "Free-rider attacks on model aggregation in federated learning" (2021).

    Attributes:
        noise: Norm of the noise in the first round / that of an honest update; it falls as one / round.
    """

    noise: float = 0.0

    def lies(self, known: Known) -> torch.Tensor:
        """Without a look at the data."""
        drawn = torch.randn(known.own.shape, generator=known.rng)
        return self.noise / known.round * lengths(known.honest).mean() * drawn / lengths(drawn)


@dataclass(frozen=True)
class Sybils(Attack):
    """One liar under many names: all send the same, within a little noise.

    Attributes:
        scale: Of the opposite of the liars' mean update.
        noise: Relative noise that tells them apart.
    """

    scale: float = 1.0
    noise: float = 1e-3

    def lies(self, known: Known) -> torch.Tensor:
        """Nearly the same from each."""
        together = -self.scale * known.own.mean(0, keepdim=True)
        drawn = torch.randn(known.own.shape, generator=known.rng)
        return together + self.noise * lengths(together) * drawn / lengths(drawn)
