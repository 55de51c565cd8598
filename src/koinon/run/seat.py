"""A node's seat in its round's secure sum: `koinon.secure`'s client with a disk, an identity and the update that was trained."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.core.noise import Noise
from koinon.core.types import ClientId
from koinon.durable.journal import Journal
from koinon.durable.peers import Peers
from koinon.federation import Federation
from koinon.protocol.messages import CHUNK_BYTES, Declined, Offer, Summing
from koinon.protocol.node import Contribute as Ready
from koinon.protocol.node import GaveUp, Hear, Masked, Say, TakePart
from koinon.protocol.sums import number
from koinon.run.summing import contribution
from koinon.secure import client, messages
from koinon.secure.client import ClientState
from koinon.secure.events import Begin, ClientEvent, Contribute, Heard, Want
from koinon.secure.events import Say as SayTo
from koinon.secure.party import Party
from koinon.secure.ring import Ring
from koinon.secure.secure_sum import SecureSum
from koinon.secure.shamir import Entropy
from koinon.update.codec import OnDisk
from koinon.view.log import log
from koinon.wire.identity import Identity


@dataclass(frozen=True, slots=True)
class Mask:
    """Mask an update; a job for any thread.

    Attributes:
        ring: What it is encoded in.
        offer: What was trained.
        state: The client's, which nothing may have changed when the masked update is handed in.
    """

    ring: Ring
    offer: Offer
    state: ClientState


@dataclass(frozen=True, slots=True)
class Worn:
    """A masked update that is durable, and the client's state with it, which is not yet; no offer if the update was gone."""

    mask: Mask
    state: ClientState
    offer: Offer | None


Out: TypeAlias = Say | Mask


class Seat:
    """What a node says in its rounds' secure sums.

    Args:
        federation: The definition on the node's own disk.
        scheme: Its secure sum.
        run: Id of the run.
        name: What the server calls this node.
        seed: The run's seed.
        identity: The node's own.
        journal: Its durable memory.
        peers: Whom it trusts.
        entropy: Source of its keys and shares.
        noise: The node's own, of the whole run.
    """

    def __init__(
        self,
        federation: Federation,
        scheme: SecureSum,
        run: str,
        name: ClientId,
        seed: int,
        identity: Identity,
        journal: Journal,
        peers: Peers,
        entropy: Entropy,
        noise: Noise,
    ) -> None:
        self._federation, self._scheme, self._seed = federation, scheme, seed
        self._run, self._name, self._identity = run, name, identity
        self._journal, self._peers, self._entropy = journal, peers, entropy
        self._noise = noise
        stored = journal.sum()
        self._state = ClientState() if stored is None else client.load(stored)
        self._round = 0 if self._state.round is None else self._state.round.update
        self._offer: Offer | None = None
        self._ring: Ring | None = None

    def take(self, effect: TakePart | Hear | Ready) -> list[Out | GaveUp]:
        """What is to be said and done, in order; what the server must not ask for ends the node's part in the round.

        Raises:
            Unavailable: if something could not be made durable; then nothing has happened.
        """
        try:
            match effect:
                case TakePart():
                    return [*self._begun(effect)]
                case Hear():
                    return [*self._heard(effect.message)]
                case Ready():
                    self._offer = effect.offer
                    return [*self._mask()]
        except (ProtocolViolation, AdmissionError) as error:
            log("the secure sum is left: {reason}", logging.WARNING, reason=str(error))
            return [GaveUp(Declined(self._round, f"this node leaves the secure sum: {error}"))]

    def masked(self, worn: Worn) -> Masked | None:
        """Hand a masked update in, unless the sum has gone on without it or there is none.

        Raises:
            Unavailable: if the disk is full or broken; then it can be handed in again.
        """
        if worn.offer is None or worn.mask.state != self._state:
            return None
        self._keep(worn.state)
        return Masked(worn.offer)

    def work(self, mask: Mask) -> Worn:
        """Mask an update, on any thread.

        Raises:
            OSError, Unavailable: if the disk is full or broken; the job can be done again.
            ClientFailed: if rounding would hide it.
        """
        offer, round = mask.offer, mask.offer.round
        update = OnDisk(self._journal.update(round))
        try:
            encoded = contribution(
                self._federation, self._seed, self._noise, round, self._name, mask.ring, update, offer
            )
        except FileNotFoundError:  # its round is over
            return Worn(mask, mask.state, None)
        state, effects = client.step(self._party({}), mask.state, Contribute(encoded), self._entropy)
        (said,) = (effect.message for effect in effects if isinstance(effect, SayTo))
        assert isinstance(said, messages.Masked)
        blob = self._journal.keep_masked(said.data)
        return Worn(mask, state, Offer(round, blob, 0.0, 0, {}, offer.seconds))

    def _begun(self, effect: TakePart) -> list[Out]:
        if effect.round != self._round:
            self._offer = None
        self._round, self._ring = effect.round, None
        return self._step({}, Begin(number(effect.round, effect.attempt), effect.round))

    def _heard(self, data: bytes) -> list[Out]:
        message: messages.FromServer = messages.decode(data, messages.FromServer, CHUNK_BYTES)
        present = self._state.round
        if present is None or message.round != present.number:  # of an attempt that is over
            return []
        invitation = message if isinstance(message, messages.Invitation) else present.invitation
        entries = () if invitation is None else invitation.cohort
        out = self._step(self._peers.among(entries), Heard(message))
        self._peers.met(entries)
        return out

    def _step(self, trusted: Mapping[ClientId, bytes], event: ClientEvent) -> list[Out]:
        state, effects = client.step(self._party(trusted), self._state, event, self._entropy)
        self._keep(state)
        out: list[Out] = []
        for effect in effects:
            match effect:
                case SayTo(message):
                    out.append(Say(Summing(messages.encode(message))))
                case Want(_, ring):
                    self._ring = ring
                    out += self._mask()
        return out

    def _mask(self) -> list[Out]:
        """Mask the update, if it is there and wanted."""
        if self._ring is None or self._offer is None or self._state.round is None or self._offer.round != self._round:
            return []
        return [Mask(self._ring, self._offer, self._state)]

    def _keep(self, state: ClientState) -> None:
        """Make the client's state durable before anything of it leaves."""
        if state != self._state:
            self._journal.keep_sum(client.dump(state))
            self._state = state

    def _party(self, trusted: Mapping[ClientId, bytes]) -> Party[SecureSum]:
        own = {self._name: self._identity.key}
        length = self._federation.learner.layout.length
        return Party(self._run, self._name, self._identity.sign, {**trusted, **own}, self._scheme, length)
