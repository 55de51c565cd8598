"""How a round's clients are cut into chunks, the unit in which they are trained.

A chunk may be trained at once, and then its bits depend on who else is in it. So the cut follows from the cohort in its
canonical order, the size of the model, and from nothing else: not from the number of workers, nor from who is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from koinon.core.types import ClientId
from koinon.data.population import Population

MOST = 50
"""Clients in a chunk: what a worker is told and tells costs as much as ten clients that do nothing."""

LARGEST = 1 << 22
"""Parameters of all models of a chunk, 16 MiB: more do not fit the processor's cache, and wait in memory."""

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

    @property
    def names(self) -> str:
        """Its clients, for a message about one of them."""
        return named(self.clients)


def named(clients: Sequence[ClientId]) -> str:
    """One of these clients, of whom only the chunk is known."""
    return f"one of the clients {', '.join(clients)}" if len(clients) > 1 else f"client {clients[0]}"


def chunk_size(cohort: int, length: int) -> int:
    """Clients in each chunk of a cohort of so many, of a model of `length`; the last chunk may have fewer."""
    return max(1, min(MOST, LARGEST // max(1, length), cohort // LEAST_CHUNKS))


def cut(cohort: Sequence[ClientId], length: int) -> list[tuple[ClientId, ...]]:
    """The cohort in chunks, of a model of `length`."""
    size = chunk_size(len(cohort), length)
    return [tuple(cohort[at : at + size]) for at in range(0, len(cohort), size)]


def chunks(cohort: Sequence[ClientId], length: int, population: Population) -> list[Chunk]:
    """The cohort in chunks with their costs, where the population knows them without making data."""
    return [Chunk(clients, sum(population.size(client) or 1 for client in clients)) for clients in cut(cohort, length)]


def costliest(chunks: Sequence[Chunk], places: Sequence[int]) -> int:
    """The place of the costliest of these chunks, and of the first where several are."""
    return max(places, key=lambda place: (chunks[place].cost, -place))
