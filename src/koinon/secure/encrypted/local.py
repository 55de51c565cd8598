"""A round of encrypted updates in one process: every message, key and ciphertext, or the same integers without them."""

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.errors import AdmissionError, Unavailable
from koinon.secure.encrypted import ckks, client, server
from koinon.secure.encrypted.circle import Circle
from koinon.secure.encrypted.events import (
    Add,
    Added,
    ClientEvent,
    Decrypt,
    Decrypted,
    Encrypt,
    Encrypted,
    KeysMade,
    MakeKeys,
    ServerEffect,
    ServerEvent,
)
from koinon.secure.encrypted.messages import Answer, Dealt, FromClient, Hello, Sent
from koinon.secure.encrypted.opening import Opening
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.events import (
    Abort,
    Begin,
    Contribute,
    Elapsed,
    Heard,
    Keep,
    Open,
    Received,
    Refuse,
    Say,
    Stored,
    Tell,
    Want,
)
from koinon.secure.messages import Agreed, Entry, encode
from koinon.secure.party import Party
from koinon.secure.playing import ROUND, RUN, Round, Summed
from koinon.secure.shamir import Entropy


def by_encryption(scheme: EncryptedSum, played: Round, entropy: Entropy) -> Summed:
    """A round of real clients and a real server.

    Raises:
        Unavailable: if too few answered.
    """
    table = _Table(scheme, played, entropy)
    table.play()
    opening = table.opening
    if opening is None:
        raise Unavailable(f"no secure sum: {'; '.join(table.reasons)}")
    total = opening.apply(table.answers[opening.opener], table.answers[opening.keeper])
    group = played.group(total, opening.ring, opening.survivors)
    sent = max(table.bytes_up[name] for name in opening.survivors)
    return played.summed([group], opening.survivors, opening.ring, sent)


def in_clear(scheme: EncryptedSum, played: Round) -> Summed:
    """The same integers without the cryptography; who is in which committee is drawn from the seed.

    Raises:
        Unavailable: if too few would have answered.
    """
    here = [name for name in played.ids if played.speaks(name, "advertise")]
    digest = played.seed.to_bytes(32, "little", signed=True)
    try:
        circle = Circle.of(RUN, ROUND, scheme, played.length, (Entry(name, bytes(32), digest, b"") for name in here))
    except AdmissionError as error:
        raise Unavailable(f"no secure sum: {len(here)} clients advertise: {error}") from None
    if not played.speaks(circle.dealer, "deal"):
        raise Unavailable(f"no secure sum: {circle.dealer} does not make the round's key")
    for phase in ("mask", "agree", "open"):
        left = {name for name in here if played.speaks(name, phase)}
        fewest = min(len(left & set(committee)) for committee in (circle.openers, circle.keepers))
        if fewest < scheme.openers or (phase != "open" and len(left) < circle.quorum):
            raise Unavailable(
                f"no secure sum: {len(left)} of {len(here)} clients answer, of a committee {fewest}; {circle.quorum} and of each "
                f"committee {scheme.openers} are needed"
            )
    survivors = [name for name in here if played.speaks(name, "mask")]
    total = circle.ring.zeros()
    for name in survivors:
        np.add(total, played.encoded(name, circle.ring) * total.dtype.type(played.mixing[name]), out=total)
    return played.summed([played.group(total, circle.ring, survivors)], survivors, circle.ring)


@dataclass
class _Table:
    """Around which clients and server sit, and what lies on it."""

    scheme: EncryptedSum
    played: Round
    entropy: Entropy
    mailbox: deque[ServerEvent] = field(default_factory=deque)
    updates: dict[str, Sequence[bytes]] = field(default_factory=dict)
    total: Sequence[bytes] = ()
    answers: dict[str, bytes] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    opening: Opening | None = None

    def __post_init__(self) -> None:
        names = list(self.played.ids)
        identities = {name: Ed25519PrivateKey.from_private_bytes(self.entropy(32)) for name in names}
        trusted = {name: identity.public_key().public_bytes_raw() for name, identity in identities.items()}
        length = self.played.length
        self.host = server.Host(RUN, trusted, self.scheme, length, self.played.mixing)
        self.parties = {
            name: Party(RUN, name, identity.sign, trusted, self.scheme, length) for name, identity in identities.items()
        }
        self.states = dict.fromkeys(names, client.ClientState())
        self.hall = server.ServerState(ROUND, tuple(names))
        self.bytes_up = dict.fromkeys(names, 0)

    def play(self) -> None:
        """Until the sum is opened, or cannot be."""
        for name in self.parties:
            self.act(name, Begin(ROUND))
        while self.hall.phase not in ("opened", "aborted"):
            self.hall, effects = server.step(
                self.host, self.hall, self.mailbox.popleft() if self.mailbox else Elapsed()
            )
            for effect in effects:
                self.serve(effect)

    def act(self, name: str, event: ClientEvent) -> None:
        """Let a client do what it does."""
        self.states[name], effects = client.step(self.parties[name], self.states[name], event, self.entropy)
        for effect in effects:
            match effect:
                case Say(message):
                    if self.played.speaks(name, _phase(message)):
                        self.mailbox.append(Received(name, message))
                        self.bytes_up[name] += len(encode(message))
                case Want(_, ring):
                    if self.played.speaks(name, "mask"):
                        self.act(name, Contribute(self.played.encoded(name, ring)))
                case MakeKeys(round):
                    self.act(name, KeysMade(round, *ckks.keys()))
                case Encrypt(round, parameters, public, words):
                    self.updates[name] = list(ckks.encrypted(parameters, public, words))
                    digest = _digest(self.updates[name])
                    self.bytes_up[name] += sum(map(len, self.updates[name]))
                    self.mailbox.append(Stored(name, digest))
                    self.act(name, Encrypted(round, digest))
                case Decrypt(round, parameters, secret, digest, count):
                    words = ckks.decrypted(parameters, secret, self.total, count)
                    self.act(name, Decrypted(round, digest, words))

    def serve(self, effect: ServerEffect) -> None:
        """Do what the server asks for."""
        match effect:
            case Tell(name, message):
                self.act(name, Heard(message))
            case Keep(name, data):
                self.answers[name] = data
            case Add(parameters, weights):
                names = sorted(weights)
                updates = [self.updates[name] for name in names]
                self.total = list(ckks.added(parameters, updates, [weights[name] for name in names]))
                self.mailbox.append(Added(_digest(self.total)))
            case Open(opening):
                self.opening = opening
            case Abort(reason) | Refuse(_, reason):
                self.reasons.append(reason)


def _digest(blocks: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.digest()


def _phase(message: FromClient) -> str:
    match message:
        case Hello():
            return "advertise"
        case Dealt():
            return "deal"
        case Sent():
            return "mask"
        case Agreed():
            return "agree"
        case Answer():
            return "open"
