"""What a client of a sum of encrypted updates remembers of a round."""

import msgspec

from koinon.core.errors import ProtocolViolation, VerificationFailed
from koinon.secure.encrypted.circle import Circle
from koinon.secure.encrypted.messages import Dealt, Gathering, Hello, Keys, Mandate, Proposal, Sent
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.keys import KeyPair
from koinon.secure.messages import Agreed
from koinon.secure.party import Party


class Progress(msgspec.Struct, frozen=True):
    """How far a client is in a round: what it received and answered.

    Attributes:
        number: The round.
        update: Which of the client's updates it adds up.
        channel: Seed of its keys; until it has sent, in a committee until the next round.
        seeds: Of the masks for openers and keepers; until it has sent.
        secret: The round's key of CKKS, if it is an opener.
        encoded: SHA-256 of the vector that was encrypted.
    """

    number: int
    update: int
    channel: bytes | None
    seeds: tuple[bytes, bytes] | None
    hello: Hello
    gathering: Gathering | None = None
    dealt: Dealt | None = None
    keys: Keys | None = None
    secret: bytes | None = None
    encoded: bytes | None = None
    sent: Sent | None = None
    proposal: Proposal | None = None
    agreed: Agreed | None = None
    mandate: Mandate | None = None


class ClientState(msgspec.Struct, frozen=True):
    """The round that was begun last, if any."""

    round: Progress | None = None


def dump(state: ClientState) -> bytes:
    """A state as bytes, secrets included."""
    return msgspec.msgpack.encode(state)


def load(data: bytes) -> ClientState:
    """The state that `dump` wrote.

    Raises:
        VerificationFailed: if it is damaged.
    """
    try:
        return msgspec.msgpack.decode(data, type=ClientState)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise VerificationFailed(
            "the stored state of an encrypted sum is damaged; the client cannot finish its round"
        ) from None


def circle_of(party: Party[EncryptedSum], progress: Progress) -> Circle:
    """The round's clients, as the server told them."""
    if progress.gathering is None:
        raise ProtocolViolation("a message came before the cohort was told")
    return Circle.of(party.run, progress.number, party.scheme, party.length, progress.gathering.cohort)


def own_keys(progress: Progress) -> KeyPair:
    """The client's keys of the round."""
    if progress.channel is None:
        raise ProtocolViolation(f"this client's part in round {progress.number} is over")
    return KeyPair.of(progress.channel)
