"""What the clients of a simulated round made, on its way to the server's next state."""

from dataclasses import replace

import torch

from koinon.aggregate.reducer import Matrix, Summing
from koinon.core.errors import ClientFailed
from koinon.core.noise import Noise
from koinon.core.statistics import Statistic, merge
from koinon.core.types import ClientId, Vector
from koinon.durable.checkpoint import ServerState
from koinon.durable.history import Participation
from koinon.federation import Federation
from koinon.run.coordinator import TRAINING
from koinon.run.traffic import Traffic
from koinon.run.work import Local, advance, aggregated, held, shared
from koinon.update.codec import InMemory


class Gathered:
    """A simulated round's updates: added up as they come where the rule allows, otherwise kept.

    Args:
        federation: What is trained.
        seed: Of everything that is drawn.
        round: Round number.

    Attributes:
        training: Statistics of local training, of all clients.
        evaluated: Statistics of the received model on held-out data, of all clients.
        parts: How each client's part ended.
    """

    def __init__(self, federation: Federation, seed: int, round: int) -> None:
        self._federation = federation
        self._seed = seed
        self._round = round
        self._reducer = federation.strategy.reducer
        self._length = federation.carried
        self._sum = self._reducer.init(self._length) if isinstance(self._reducer, Summing) else None
        self._rows: list[Vector] = []
        self._weights: list[float] = []
        self._states: dict[str, torch.Tensor] = {}
        self.training: dict[str, Statistic] = {}
        self.evaluated: dict[str, Statistic] = {}
        self.parts: list[Participation] = []

    def take(self, client: ClientId, result: Local | ClientFailed, traffic: Traffic) -> dict[str, Statistic]:
        """Take what a client made; returns what it says of the received model on its held-out data."""
        up, down = traffic.up, traffic.down
        if isinstance(result, ClientFailed):
            self.parts.append(Participation(client, "failed", str(result), bytes_up=up, bytes_down=down))
            return {}
        self._add(client, result)
        examples, weight = result.examples, result.weight
        self.parts.append(
            Participation(client, "accepted", examples=examples, weight=weight, bytes_up=up, bytes_down=down)
        )
        evaluated = {name: value for name, value in result.metrics.items() if not name.startswith(TRAINING)}
        trained = {
            name.removeprefix(TRAINING): value for name, value in result.metrics.items() if name.startswith(TRAINING)
        }
        self.training = merge((self.training, trained))
        self.evaluated = merge((self.evaluated, evaluated))
        return evaluated

    def shortage(self) -> str:
        """Why the round cannot close."""
        failed = [f"{part.client}: {part.reason}" for part in self.parts if part.outcome != "accepted"]
        reasons = f", e.g. {'; '.join(failed[:3])}" if failed else ""
        if not self._weights:
            return f"every client of round {self._round} failed{reasons}"
        rule, least = type(self._reducer).__name__, self._federation.strategy.least
        return f"round {self._round} has {len(self._weights)} updates, and {rule} needs {least}{reasons}"

    def advanced(self, server: ServerState) -> tuple[ServerState, bytes | memoryview | None]:
        """The server's next state and, where the way down has a codec, what leads to its model."""
        federation, seed = self._federation, self._seed
        if isinstance(self._reducer, Summing):
            total = self._reducer.finish(self._sum)
        else:
            updates = torch.stack(self._rows) if self._rows else torch.empty(0, self._length)
            accepted = [part.client for part in self.parts if part.outcome == "accepted"]
            rows = Matrix(updates, self._weights)
            server, total = aggregated(federation, seed, self._round, server, accepted, rows)
        clients = {**server.clients, **self._states}
        server, change = advance(federation, seed, Noise.seeded(seed), self._round, server, total, self._weights)
        return replace(server, clients=clients), change

    def _add(self, client: ClientId, local: Local) -> None:
        codec, known = self._federation.strategy.codec, shared(self._federation, self._seed, self._round)
        decoded = codec.decode(InMemory(local.encoded), known, 0, known.length)
        rows = held(self._federation, Matrix(decoded[None], [local.weight]))
        (row,), (weight,) = rows.columns(0, self._length), rows.weights
        if isinstance(self._reducer, Summing):
            self._sum = self._reducer.add(self._sum, row, weight)
        else:
            self._rows.append(row)
        self._weights.append(weight)
        self._states |= {f"{client}/{name}": tensor for name, tensor in local.state.items()}
