"""Where simulated clients are trained. Others (worker processes, a Ray cluster) implement the same protocol."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from koinon.core.errors import ClientFailed
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.evaluate.evaluation import on_client
from koinon.federation import Federation
from koinon.learn.learner import CohortLearner, Room
from koinon.run.chunks import chunk_size, cut
from koinon.run.work import ClientState, Local, kept, packed, task_of, train
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


def path_of(federation: Federation, cohort: int) -> str:
    """How the clients of a cohort of so many are trained, for the run's record."""
    size = chunk_size(cohort, federation.learner.layout.length)
    together = size > 1 and getattr(federation.learner, "together", False)
    return f"{size} at a time, at once where they hold equally many examples" if together else "one by one"


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
        for clients in cut(cohort, self.federation.learner.layout.length):
            made = self.chunk(round, clients, model, [states[client] for client in clients], told)
            yield from zip(clients, made, strict=True)

    def chunk(
        self,
        round: int,
        clients: Sequence[ClientId],
        model: Vector,
        states: Sequence[ClientState],
        told: Told,
        room: Room = torch.empty,
    ) -> Iterator[Local | ClientFailed]:
        """What each client of a chunk made; where the learner trains none at once, as it is asked for.

        Args:
            room: Gives memory in which updates are wanted; they may lie elsewhere all the same.
        """
        if len(clients) > 1 and getattr(self.federation.learner, "together", False):
            yield from self._together(round, clients, model, states, told, room)
            return
        for client, state in zip(clients, states, strict=True):
            yield self._client(round, client, model, state, told)

    def close(self) -> None:
        """Nothing to give back."""

    def _together(
        self,
        round: int,
        clients: Sequence[ClientId],
        model: Vector,
        states: Sequence[ClientState],
        told: Told,
        room: Room,
    ) -> Iterator[Local | ClientFailed]:
        federation, seed, noise = self.federation, self.seed, Noise.seeded(self.seed)
        learner, judged = federation.learner, federation.evaluation.federated
        assert isinstance(learner, CohortLearner)
        datas, made, known = {}, {}, dict(zip(clients, states, strict=True))
        for client in clients:
            try:
                data = self.population[client]
                datas[client] = data, on_client(learner, model, data, kept(known[client])) if judged else {}
            except ClientFailed as failure:
                made[client] = failure
        updates = learner.train_cohort(
            model,
            [data.train for data, _ in datas.values()],
            [task_of(federation, noise, round, client, known[client]) for client in datas],
            [generator(seed, "train", round, client) for client in datas],
            room,
        )
        trained = dict(zip(datas, updates, strict=True))
        for client, state in zip(clients, states, strict=True):
            update = made.get(client) or trained[client]
            try:
                if isinstance(update, ClientFailed):
                    raise update
                yield packed(federation, seed, noise, round, client, update, datas[client][1], state, told)
            except ClientFailed as failure:
                yield failure

    def _client(
        self, round: int, client: ClientId, model: Vector, state: ClientState, told: Told
    ) -> Local | ClientFailed:
        try:
            data, noise = self.population[client], Noise.seeded(self.seed)
            return train(self.federation, self.seed, noise, round, client, model, data, state, told)
        except ClientFailed as failure:
            return failure
