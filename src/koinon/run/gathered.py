"""What the clients of a simulated round made, on its way to the server's next state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from koinon.aggregate.reducer import Matrix, Summing
from koinon.core.errors import ClientFailed
from koinon.core.noise import Noise
from koinon.core.statistics import Statistic, merge
from koinon.core.types import ClientId, Vector
from koinon.durable.checkpoint import ServerState
from koinon.durable.history import Participation
from koinon.durable.store import Evaluated
from koinon.evaluate.evaluation import of_evaluation, of_training
from koinon.federation import Federation
from koinon.protocol.messages import Blob, Offer
from koinon.run.clock import Missed
from koinon.run.traffic import Traffic
from koinon.run.work import Local, advance, aggregated, held, shared
from koinon.strategy.asynchrony import Asynchrony
from koinon.update.codec import looked_at

NOWHERE = "0" * 64
"""Digest of an update that does not travel."""


class Gathered:
    """A simulated round's updates: added up as they come where the rule allows, otherwise kept.

    Args:
        federation: What is trained.
        seed: Of everything that is drawn.
        round: Round number.

    Attributes:
        round: Round number.
        training: Statistics of local training, of all clients.
        evaluated: Statistics of the received model on held-out data, of all clients.
        parts: How each client's part ended.
    """

    def __init__(self, federation: Federation, seed: int, round: int) -> None:
        self._federation = federation
        self._seed = seed
        self.round = round
        self._reducer = federation.strategy.reducer
        self._shared = shared(federation, seed, round)
        self._length = federation.carried
        self._summing = self._reducer if isinstance(self._reducer, Summing) else None  # looked up once: it takes long
        self._sum = self._summing.init(self._length) if self._summing is not None else None
        self._rows: list[Vector] = []
        self._weights: list[float] = []
        self._states: dict[str, torch.Tensor] = {}
        self._said: list[Evaluated] = []
        self.training: dict[str, Statistic] = {}
        self.evaluated: dict[str, Statistic] = {}
        self.parts: list[Participation] = []

    def take(self, client: ClientId, result: Local | ClientFailed, traffic: Traffic) -> None:
        """Take what a client made."""
        up, down = traffic.up, traffic.down
        if isinstance(result, ClientFailed):
            self.parts.append(Participation(client, "failed", str(result), bytes_up=up, bytes_down=down))
            return
        self._states |= {f"{client}/{name}": tensor for name, tensor in result.state.items()}
        self._counted(client, result, traffic)

    def miss(self, client: ClientId, missed: Missed, traffic: Traffic) -> None:
        """Note a client whose update does not count."""
        self.parts.append(
            Participation(client, missed.outcome, missed.reason, bytes_up=traffic.up, bytes_down=traffic.down)
        )

    def offer(self, local: Local) -> Offer:
        """What the server would be offered."""
        update = Blob(NOWHERE, len(local.encoded))
        return Offer(self.round, update, local.weight, local.examples, dict(local.metrics), 0.0)

    def complete(self) -> bool:
        """Whether the updates make one; to be asked when all clients were taken."""
        return True

    def shortage(self) -> str:
        """Why the round cannot close."""
        failed = [f"{part.client}: {part.reason}" for part in self.parts if part.outcome != "accepted"]
        reasons = f", e.g. {'; '.join(failed[:3])}" if failed else ""
        if not self._weights:
            return f"every client of round {self.round} failed{reasons}"
        rule, least = type(self._reducer).__name__, self._federation.strategy.least
        return f"round {self.round} has {len(self._weights)} updates, and {rule} needs {least}{reasons}"

    def advanced(self, server: ServerState, noise: Noise) -> tuple[ServerState, bytes | memoryview | None]:
        """The server's next state and, where the way down has a codec, what leads to its model."""
        federation, seed = self._federation, self._seed
        server, total = self._reduced(server)
        clients = {**server.clients, **self._states}
        server, change = advance(federation, seed, noise, self.round, server, total, self._weights)
        return replace(server, clients=clients), change

    def records(self) -> Sequence[Evaluated]:
        """What clients say of the received model on their held-out data, as it is recorded."""
        return self._said

    def _counted(self, client: ClientId, local: Local, traffic: Traffic) -> None:
        """Add what a client made to the others'."""
        self._add(client, local)
        examples, weight, up, down = local.examples, local.weight, traffic.up, traffic.down
        self.parts.append(
            Participation(client, "accepted", examples=examples, weight=weight, bytes_up=up, bytes_down=down)
        )
        evaluated, received = of_evaluation(local.metrics), self._received(client)
        self.training = merge((self.training, of_training(local.metrics)))
        if evaluated:
            self._said.append(Evaluated(received, client, evaluated))
        if evaluated and received == self.round - 1:
            self.evaluated = merge((self.evaluated, evaluated))

    def _received(self, client: ClientId) -> int:
        """After which round the model was that a client received."""
        return self.round - 1

    def _landed(self, client: ClientId, update: Vector) -> Vector:
        """A client's update, as it is to be added; the same one, which may lie where it is not to stay."""
        return update

    def _reduced(self, server: ServerState) -> tuple[ServerState, Vector]:
        """The updates as one, and the server's state with what its rule remembers."""
        if self._summing is not None:
            return server, self._summing.finish(self._sum)
        updates = torch.stack(self._rows) if self._rows else torch.empty(0, self._length)
        accepted = [part.client for part in self.parts if part.outcome == "accepted"]
        rows = Matrix(updates, self._weights)
        return aggregated(self._federation, self._seed, self.round, server, accepted, rows)

    def _add(self, client: ClientId, local: Local) -> None:
        seen = self._landed(client, looked_at(self._federation.strategy.codec, local.encoded, self._shared))
        rows = held(self._federation, Matrix(seen[None], [local.weight]))
        (row,), (weight,) = rows.columns(0, self._length), rows.weights
        if self._summing is not None:
            self._sum = self._summing.add(self._sum, row, weight)
        else:
            self._rows.append(row.clone())  # what it lies in belongs to the engine
        self._weights.append(weight)


class LandedGathered(Gathered):
    """The updates of an asynchronous step, from clients that began from models of different ages.

    Args:
        federation: What is trained.
        asynchrony: What it makes of stale updates.
        seed: Of everything that is drawn.
        round: Number of the step.
        begun: After which step the model was from which each client began.
        model: The model after a step, the present one included.
    """

    def __init__(
        self,
        federation: Federation,
        asynchrony: Asynchrony,
        seed: int,
        round: int,
        begun: Mapping[ClientId, int],
        model: Callable[[int], Vector],
    ) -> None:
        super().__init__(federation, seed, round)
        self._asynchrony, self._begun, self._model = asynchrony, begun, model

    def _received(self, client: ClientId) -> int:
        return self._begun[client]

    def _landed(self, client: ClientId, update: Vector) -> Vector:
        present, began = self.round - 1, self._begun[client]
        return self._asynchrony.landed(update, present - began, lambda: self._model(began) - self._model(present))
