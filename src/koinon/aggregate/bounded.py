"""Updates held to what they promise: a client's clip is only a promise until the server has measured it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from koinon.aggregate.reducer import Rows
from koinon.core.norm import BLOCK, norms, shrinking
from koinon.core.types import Spec


@dataclass(frozen=True)
class Bounded:
    """Rows scaled down to the norms, and cut to the weight, that a spec says they have; others stay as they are.

    Attributes:
        rows: The updates as they came.
        spec: What their clients promised of them.
    """

    rows: Rows
    spec: Spec

    @property
    def length(self) -> int:
        """D, the number of columns."""
        return self.rows.length

    @property
    def weights(self) -> Sequence[float]:
        """Each row's weight, at most the bound."""
        bound = self.spec.weight_bound
        return self.rows.weights if bound is None else [min(weight, bound) for weight in self.rows.weights]

    def columns(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Columns `start .. stop` of each row in turn."""
        within = max(self._bounded - start, 0)
        for row, factor in zip(self.rows.columns(start, stop), self._factors, strict=True):
            held = row if factor == 1.0 else row * factor
            yield held if within >= stop - start else torch.cat((held[:within], row[within:].clamp(-0.5, 0.5)))

    @property
    def _bounded(self) -> int:
        """The number of columns that the norms are of: all but a tally."""
        return self.length - (self.spec.tally is not None)

    @cached_property
    def _factors(self) -> list[float]:
        """What each row is multiplied by; one more pass over all of them for each bound."""
        factors = torch.ones(len(self.rows.weights))
        for bound, power in ((self.spec.l2_bound, 2), (self.spec.l1_bound, 1)):
            if bound is not None:
                factors = torch.minimum(factors, shrinking(self._norms(power), bound))
        return factors.tolist()

    def _norms(self, power: int) -> torch.Tensor:
        """Each row's norm; float64."""
        sums = torch.zeros(len(self.rows.weights), dtype=torch.float64)
        for start in range(0, self._bounded, BLOCK):
            for number, row in enumerate(self.rows.columns(start, min(start + BLOCK, self._bounded))):
                sums[number] += float(norms(row, power)) ** power
        return sums ** (1 / power)
