"""Who trains when in an asynchronous federation: clients begin one by one, and land in the order in which they end."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from koinon.core.errors import AdmissionError, Unavailable
from koinon.core.rng import generator
from koinon.core.types import ClientId, canonical
from koinon.durable.history import RoundRecord
from koinon.run.clock import LONGEST_WAIT_S, PATIENCE_S, Draw, Parts, Timed, dropped
from koinon.strategy.asynchrony import Asynchrony

_TRIES = 100
"""Clients that are looked at for one that can begin; where few are left, none may be found, and fewer train for a while."""


@dataclass(frozen=True, order=True)
class _Flight:
    """A client that trains, from the model after round `begun`, and whether it lands or vanishes on the way."""

    ends: float
    number: int
    client: ClientId = field(compare=False)
    begun: int = field(compare=False)
    lands: bool = field(compare=False)


class Flights:
    """Steps of an asynchronous server, each after so many updates; a pure function of its arguments.

    Whoever ends, or drops out, is followed at once by another client, which begins from the model as it then is. A client
    trains from one model at most once.

    Args:
        asynchrony: How many land in a step, and how many train at a time.
        parts: How long each client's part takes.
        seed: Of who begins, and who drops out.

    Raises:
        AdmissionError: if there are too few clients.
    """

    def __init__(self, asynchrony: Asynchrony, parts: Parts, seed: int) -> None:
        ids = parts.population.ids
        if len(ids) < asynchrony.buffer:
            raise AdmissionError(
                f"{len(ids)} clients never fill a buffer of {asynchrony.buffer}; lower it, or have more clients"
            )
        self._asynchrony, self._parts, self._seed = asynchrony, parts, seed
        self._ids: Sequence[ClientId] = ids
        self._rng = generator(seed, "flights")
        self._now, self._step, self._number = 0.0, 0, 0
        self._flying: list[_Flight] = []
        self._busy: set[ClientId] = set()  # who trains, or has landed since the model last changed
        self._fill()

    def resume(self, closed: Sequence[RoundRecord]) -> None:
        """Go through the steps that were made, without the training."""
        for record in closed:
            self.round(record.round, list)

    def round(self, number: int, draw: Draw) -> Timed:
        """The clients that land in this step, whoever `draw` would have chosen.

        Raises:
            Unavailable: if clients are never there for as long as their part takes.
        """
        landed: dict[ClientId, int] = {}
        since = self._now
        while len(landed) < self._asynchrony.buffer:
            if self._now - since > LONGEST_WAIT_S:
                raise Unavailable(
                    f"no step in {LONGEST_WAIT_S / 86_400:.0f} days; clients' devices are off before their part is over"
                )
            flight = heapq.heappop(self._flying) if self._flying else None
            self._now = self._now + PATIENCE_S if flight is None else flight.ends
            if flight is not None and flight.lands:
                landed[flight.client] = flight.begun
            elif flight is not None:
                self._busy.discard(flight.client)
            if len(landed) < self._asynchrony.buffer:
                self._fill()
        self._step += 1
        self._busy = {flight.client for flight in self._flying}
        self._fill()
        needed = frozenset(flight.begun for flight in self._flying if flight.lands) - {self._step}
        return Timed(canonical(landed), begun=landed, closed_s=self._now, needed=needed)

    def _fill(self) -> None:
        """Let clients begin until enough train."""
        while len(self._flying) < self._asynchrony.concurrency:
            client = self._free()
            if client is None:
                return
            self._busy.add(client)
            self._number += 1
            seconds, device = self._parts.seconds(client), self._parts.devices(client)
            lands = device.stays(self._now, seconds) and not dropped(device.dropout, self._seed, self._number, client)
            heapq.heappush(self._flying, _Flight(self._now + seconds, self._number, client, self._step, lands))

    def _free(self) -> ClientId | None:
        """A client that can begin, every one equally likely."""
        if len(self._busy) >= len(self._ids):
            return None
        for _ in range(_TRIES):
            client = self._ids[int(torch.randint(len(self._ids), (), generator=self._rng))]
            if client not in self._busy and self._parts.devices(client).stays(self._now):
                return client
        return None
