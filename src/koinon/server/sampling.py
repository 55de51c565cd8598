"""Who takes part in a round.

Candidates come in an order of the caller's making; give them in the canonical one, so that equal seeds choose equal
cohorts. A cohort comes back in canonical order. `Uniform`, `Poisson` and `RoundRobin` look only at whom they
choose, so the candidates may be a lazy sequence of millions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from koinon.core.errors import AdmissionError
from koinon.core.types import ClientId, canonical


class Sampler(Protocol):
    """A rule for choosing a round's cohort."""

    def sample(
        self,
        candidates: Sequence[ClientId],
        round: int,
        rng: torch.Generator,
        sizes: Mapping[ClientId, int] | None = None,
    ) -> list[ClientId]:
        """The cohort of a round (from 1), in canonical order; every draw comes from `rng`.

        Args:
            candidates: Who could take part, without repetition.
            sizes: How many examples each holds; only `Weighted` reads it.
        """

    def probability(self, population: int) -> float | None:
        """Each of so many candidates' chance to be in a cohort; None if it differs or is not random."""


@dataclass(frozen=True)
class Everyone:
    """All candidates, every round."""

    def sample(
        self,
        candidates: Sequence[ClientId],
        round: int,
        rng: torch.Generator,
        sizes: Mapping[ClientId, int] | None = None,
    ) -> list[ClientId]:
        """All candidates."""
        return canonical(candidates)

    def probability(self, population: int) -> float:
        """One."""
        return 1.0


@dataclass(frozen=True)
class Uniform:
    """So many candidates, without replacement, every subset equally likely.

    Attributes:
        count: Size of a cohort, >= 1; all candidates if there are fewer.
    """

    count: int

    def __post_init__(self) -> None:
        _positive(self.count)

    def sample(
        self,
        candidates: Sequence[ClientId],
        round: int,
        rng: torch.Generator,
        sizes: Mapping[ClientId, int] | None = None,
    ) -> list[ClientId]:
        """`min(count, len(candidates))` candidates."""
        return _choose(candidates, min(self.count, len(candidates)), rng)

    def probability(self, population: int) -> float:
        """min(1, count / population)."""
        return self.count / max(self.count, population)


@dataclass(frozen=True)
class Weighted:
    """So many candidates, drawn one after another with probability proportional to size among those not yet drawn.

    This is successive sampling: the first draw is proportional to size, a client's chance to be in the cohort only
    nearly so, and never above one. A client of size 0 is never drawn. Costs time in proportion to the candidates.

    Attributes:
        count: Size of a cohort, >= 1; all candidates of positive size if there are fewer.
    """

    count: int

    def __post_init__(self) -> None:
        _positive(self.count)

    def sample(
        self,
        candidates: Sequence[ClientId],
        round: int,
        rng: torch.Generator,
        sizes: Mapping[ClientId, int] | None = None,
    ) -> list[ClientId]:
        """`count` candidates of positive size, or all of them.

        Raises:
            AdmissionError: if `sizes` is None or lacks a candidate.
        """
        if sizes is None or any(client not in sizes for client in candidates):
            raise AdmissionError(
                "Weighted needs the size of every candidate; sample by Uniform where sizes are unknown"
            )
        holders = [client for client in candidates if sizes[client] > 0]
        weights = torch.tensor([sizes[client] for client in holders], dtype=torch.float64)
        # The order of exponential clocks with these rates is that of successive draws (Efraimidis & Spirakis, 2006).
        clocks = torch.empty_like(weights).exponential_(generator=rng) / weights
        first = clocks.topk(min(self.count, len(holders)), largest=False).indices
        return canonical(holders[index] for index in first.tolist())

    def probability(self, population: int) -> None:
        """None: it differs between clients."""


@dataclass(frozen=True)
class Poisson:
    """Every candidate independently with the same probability, so a cohort may have any size, even none.

    Attributes:
        rate: That probability, in (0, 1].
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise AdmissionError(f"Poisson needs a rate in (0, 1], not {self.rate}; cohort / population is usual")

    def sample(
        self,
        candidates: Sequence[ClientId],
        round: int,
        rng: torch.Generator,
        sizes: Mapping[ClientId, int] | None = None,
    ) -> list[ClientId]:
        """A binomial number of candidates, every subset of that size equally likely: the same distribution."""
        trials = torch.tensor(float(len(candidates)), dtype=torch.float64)
        count = torch.binomial(trials, torch.tensor(self.rate, dtype=torch.float64), generator=rng)
        return _choose(candidates, int(count), rng)

    def probability(self, population: int) -> float:
        """`rate`."""
        return self.rate


@dataclass(frozen=True)
class RoundRobin:
    """So many candidates in turn, starting where the last round ended.

    Attributes:
        count: Size of a cohort, >= 1; all candidates if there are fewer.
    """

    count: int

    def __post_init__(self) -> None:
        _positive(self.count)

    def sample(
        self,
        candidates: Sequence[ClientId],
        round: int,
        rng: torch.Generator,
        sizes: Mapping[ClientId, int] | None = None,
    ) -> list[ClientId]:
        """The next `min(count, len(candidates))` candidates; draws nothing."""
        population = len(candidates)
        count = min(self.count, population)
        first = (round - 1) * count
        return canonical(candidates[(first + turn) % population] for turn in range(count))

    def probability(self, population: int) -> None:
        """None: nothing is random."""


def _positive(count: int) -> None:
    if count < 1:
        raise AdmissionError(f"a cohort of {count} cannot train; give a count of at least 1")


def _choose(candidates: Sequence[ClientId], count: int, rng: torch.Generator) -> list[ClientId]:
    """`count` of the candidates, every subset equally likely, in time and memory of the order of `count`.

    Source: Bentley & Floyd, "A sample of brilliance" (1987).
    """
    population = len(candidates)
    chosen: set[int] = set()
    draws = torch.randint(2**63 - 1, (count,), generator=rng).tolist()
    for last, draw in zip(range(population - count, population), draws, strict=True):
        index = draw % (last + 1)  # its bias is last / 2**63
        chosen.add(last if index in chosen else index)
    return canonical(candidates[index] for index in chosen)
