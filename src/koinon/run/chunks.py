"""How a round's clients are cut into chunks, the unit in which they are trained.

A chunk may be trained at once, and then its bits depend on who else is in it. So the cut follows from the cohort in its
canonical order and from nothing else: not from the number of workers, nor from who is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from koinon.core.types import ClientId
from koinon.data.population import Population

MOST = 10
"""Clients in a chunk."""

LEAST_CHUNKS = 10
"""Chunks of a round, if it has so many clients: enough that two or four workers end at about the same time."""


@dataclass(frozen=True)
class Chunk:
    """Clients that one worker trains.

    Attributes:
        clients: In canonical order.
        cost: How long they take compared with others, in examples; steps and epochs are the same for all.
    """

    clients: tuple[ClientId, ...]
    cost: int


def chunk_size(cohort: int) -> int:
    """Clients in each chunk of a cohort of so many; the last chunk may have fewer."""
    return max(1, min(MOST, cohort // LEAST_CHUNKS))


def cut(cohort: Sequence[ClientId]) -> list[tuple[ClientId, ...]]:
    """The cohort in chunks."""
    size = chunk_size(len(cohort))
    return [tuple(cohort[at : at + size]) for at in range(0, len(cohort), size)]


def chunks(cohort: Sequence[ClientId], population: Population) -> list[Chunk]:
    """The cohort in chunks with their costs, where the population knows them without making data."""
    return [Chunk(clients, sum(population.size(client) or 1 for client in clients)) for clients in cut(cohort)]


def costliest(chunks: Sequence[Chunk], places: Sequence[int]) -> int:
    """The place of the costliest of these chunks, and of the first where several are."""
    return max(places, key=lambda place: (chunks[place].cost, -place))
