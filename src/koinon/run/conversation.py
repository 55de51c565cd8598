"""What a simulated server and its clients say to each other: the real protocol, and the bytes that it would have sent."""

from collections.abc import Sequence
from typing import Literal

from koinon.core.errors import ClientFailed
from koinon.core.types import ClientId
from koinon.durable.store import Store
from koinon.federation import Federation
from koinon.protocol import session
from koinon.protocol.events import Arrived, Close, Closed, Effect, Event, Joined, Received, Send, Stream
from koinon.protocol.messages import Blob, Continue, Failed, FromNode, Leave, Offer, Ready
from koinon.protocol.state import SessionState, Terms
from koinon.run.traffic import Traffic, blob_bytes, message_bytes
from koinon.update.stage import Told


class Conversation:
    """The session's state machine, driven in place of a network.

    Args:
        federation: What is trained.
        store: What of the run is durable.
        terms: How the server waits for clients.
        model: The present model.
        told: What clients are told beside it.

    Attributes:
        state: The session's.
    """

    def __init__(self, federation: Federation, store: Store, terms: Terms, model: Blob, told: Told) -> None:
        self._store = store
        self._terms = terms
        self._changes = federation.strategy.downlink is not None
        completed = store.completed()
        status: Literal["finished", "running"] = "finished" if completed >= terms.rounds else "running"
        deltas = store.deltas.leading_to(model, completed)
        self.state = SessionState(model, completed, status, told=told, deltas=deltas)
        self._held = self._recalled()

    def step(self, event: Event) -> tuple[Effect, ...]:
        """Take an event through the protocol."""
        self.state, effects = session.step(self._terms, self.state, event)
        return effects

    def reply(self, round: int, client: ClientId, result: Offer | ClientFailed) -> tuple[Traffic, bool]:
        """A client comes, answers and goes: what crosses its connection, and whether the round can be added up."""
        asked = self.step(Joined(client, self._ready(client)))
        if isinstance(result, ClientFailed):
            said: FromNode = Failed(round, str(result))
            effects = self.step(Received(client, said))
            traffic = _traffic(client, said, (*asked, *effects))
        else:
            self.step(Received(client, result))
            effects = self.step(Arrived(client, round, result.update.digest))
            traffic = _traffic(client, result, (*asked, Send(client, Continue(round, 0)), *effects))
            traffic.up += blob_bytes(result.update, 0, node=True)
            if self._changes:
                self._held[client] = self.state.model.digest
        self.step(Received(client, Leave("")))
        return traffic, any(isinstance(effect, Close) for effect in effects)

    def closed(self, event: Closed) -> tuple[Effect, ...]:
        """The round's model is durable, and so is what leads to it."""
        effects = self.step(event)
        bases = {delta.base for delta in self.state.deltas}
        self._held = {client: base for client, base in self._held.items() if base in bases}
        self._store.deltas.drop(event.round, needed=self.state.deltas)
        return effects

    def _recalled(self) -> dict[ClientId, str]:
        """Which client holds which model, where what it is sent depends on that."""
        bases = {delta.round: delta.base for delta in self.state.deltas}
        return {
            part.client: bases[record.round]
            for record in (self._store.history() if bases else ())
            for part in record.participants
            if part.outcome == "accepted" and record.round in bases
        }

    def _ready(self, client: ClientId) -> Ready:
        held = self._held.get(client)
        return Ready() if held is None else Ready(held, self.state.model.size)


def _traffic(client: ClientId, said: FromNode, effects: Sequence[Effect]) -> Traffic:
    """Bytes that would have crossed a client's connection."""
    traffic = Traffic(up=message_bytes(said, node=True))
    for effect in effects:
        if isinstance(effect, Send) and effect.node == client:
            traffic.down += message_bytes(effect.message, node=False)
        elif isinstance(effect, Stream) and effect.node == client:
            traffic.down += blob_bytes(effect.blob, effect.offset, node=False)
    return traffic
