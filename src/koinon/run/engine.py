"""Where simulated clients are trained. Others (worker processes, a Ray cluster) implement the same protocol."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from koinon.core.errors import ClientFailed
from koinon.core.noise import Noise
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.chunks import cut
from koinon.run.work import ClientState, Local, train
from koinon.update.stage import Told


class Engine(Protocol):
    """Trains a round's cohort; results depend on the arguments alone, not on how the work is spread."""

    def train(
        self, round: int, cohort: Sequence[ClientId], model: Vector, states: Mapping[ClientId, ClientState], told: Told
    ) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """What each client made, in the order of `cohort`; kept by nobody else, and its bytes valid until the next.

        Args:
            round: Round number.
            cohort: Clients in canonical order.
            model: The global model, float32 `[D]`.
            states: State of each client of the cohort, empty before its first round.
            told: What the server tells the stages.
        """

    def close(self) -> None:
        """Give back what it holds; nothing is trained any more."""


MakeEngine: TypeAlias = Callable[[Federation, Population, int], Engine]
"""Federation, population and seed -> what trains the clients."""


@dataclass(frozen=True)
class InProcess:
    """One client after another, here."""

    federation: Federation
    population: Population
    seed: int

    def train(
        self, round: int, cohort: Sequence[ClientId], model: Vector, states: Mapping[ClientId, ClientState], told: Told
    ) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """Each client's data exists only while its chunk is trained."""
        for clients in cut(cohort):
            made = self.chunk(round, clients, model, [states[client] for client in clients], told)
            yield from zip(clients, made, strict=True)

    def chunk(
        self, round: int, clients: Sequence[ClientId], model: Vector, states: Sequence[ClientState], told: Told
    ) -> Iterator[Local | ClientFailed]:
        """What each client of a chunk made, as it is asked for."""
        for client, state in zip(clients, states, strict=True):
            yield self._client(round, client, model, state, told)

    def close(self) -> None:
        """Nothing to give back."""

    def _client(
        self, round: int, client: ClientId, model: Vector, state: ClientState, told: Told
    ) -> Local | ClientFailed:
        try:
            data, noise = self.population[client], Noise.seeded(self.seed)
            return train(self.federation, self.seed, noise, round, client, model, data, state, told)
        except ClientFailed as failure:
            return failure
