"""Where simulated clients are trained. Others (worker processes, a Ray cluster) implement the same protocol."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from koinon.core.errors import ClientFailed
from koinon.core.noise import Noise
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.work import ClientState, Local, train
from koinon.update.stage import Told


class Engine(Protocol):
    """Trains a round's cohort; results depend on the arguments alone, not on how the work is spread."""

    def train(
        self, round: int, cohort: Sequence[ClientId], model: Vector, states: Mapping[ClientId, ClientState], told: Told
    ) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """What each client made, in the order of `cohort`; made as it is asked for, and kept by nobody else.

        Args:
            round: Round number.
            cohort: Clients in canonical order.
            model: The global model, float32 `[D]`.
            states: State of each client of the cohort, empty before its first round.
            told: What the server tells the stages.
        """


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
        """Each client's data exists only while it is trained."""
        for client in cohort:
            try:
                data = self.population[client]
                noise = Noise.seeded(self.seed)
                yield client, train(self.federation, self.seed, noise, round, client, model, data, states[client], told)
            except ClientFailed as failure:
                yield client, failure
