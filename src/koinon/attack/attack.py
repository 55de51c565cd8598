"""What a lie is made of, and what the liars know."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from koinon.core.types import Vector
from koinon.data.dataset import DataSet

Rule = Callable[[torch.Tensor], Vector]
"""What the server makes of updates `[n, D]`, as far as the liars can tell."""


@dataclass(frozen=True)
class Known:
    """What liars know when they agree on what to send.

    Attributes:
        honest: Updates of the round's honest clients as they are sent; float32 `[h, D]`. On a network a liar sees nobody
            else's, and this is its own.
        own: What each liar would send if it were honest; float32 `[b, D]`, b >= 1.
        rule: The server's rule; it sees the honest updates first, then the lies.
        round: Round number, from 1.
        rng: Draws.
    """

    honest: torch.Tensor
    own: torch.Tensor
    rule: Rule
    round: int
    rng: torch.Generator

    @property
    def liars(self) -> int:
        """b, how many lie together."""
        return len(self.own)


def lengths(updates: torch.Tensor) -> torch.Tensor:
    """L2 norms of the rows; `[n, 1]`, never 0."""
    norms: torch.Tensor = torch.linalg.vector_norm(updates, dim=1, keepdim=True)
    return norms.clamp(min=1e-30)


class Attack:
    """Base of attacks; by itself it tells the truth."""

    def poisoned(self, data: DataSet, rng: torch.Generator) -> DataSet:
        """What a liar trains on in place of its data."""
        return data

    def lies(self, known: Known) -> torch.Tensor:
        """What the liars send; float32 `[b, D]`."""
        return known.own
