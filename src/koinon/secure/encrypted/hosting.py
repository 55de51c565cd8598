"""What the server of a sum of encrypted updates knows of a round, and what it tells of it in each phase."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, assert_never

import msgspec

from koinon.core.errors import AdmissionError, VerificationFailed
from koinon.core.types import ClientId
from koinon.secure.encrypted.circle import Circle, keys_digest, letter_digests, sent_digest
from koinon.secure.encrypted.messages import (
    Dealt,
    Forwarded,
    FromServer,
    Gathering,
    Hello,
    Keys,
    Mandate,
    Proposal,
    Proposed,
    Sent,
)
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.messages import Agreed, Entry

Phase: TypeAlias = Literal["advertise", "deal", "mask", "agree", "add", "open", "opened", "aborted"]


@dataclass(frozen=True)
class Host:
    """What the server knows beforehand.

    Attributes:
        run: Id of the run.
        trusted: Clients' identity keys, by name.
        scheme: From the definition.
        length: D, coordinates of an update.
        weights: By what whole number a client's update is multiplied, from 1 to the scheme's `mixing`; 1 where nothing is said.
    """

    run: str
    trusted: Mapping[ClientId, bytes]
    scheme: EncryptedSum
    length: int
    weights: Mapping[ClientId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(not 1 <= weight <= self.scheme.mixing for weight in self.weights.values()):
            raise AdmissionError(f"ciphertexts are multiplied by whole numbers from 1 to mixing={self.scheme.mixing}")


class ServerState(msgspec.Struct, frozen=True):
    """A round.

    Attributes:
        number: From 1.
        phase: What is waited for.
        invited: Who may say hello.
        hellos: Who did.
        cohort: The same, once they are no longer waited for.
        dealt: The round's key.
        sent: Who said what it sends.
        stored: SHA-256 of the encrypted updates that are durable.
        agreed: Who signed the proposal.
        total: SHA-256 of the added ciphertexts.
        answers: SHA-256 of each answer.
    """

    number: int
    invited: tuple[str, ...]
    phase: Phase = "advertise"
    hellos: dict[str, Hello] = {}
    cohort: tuple[Entry, ...] = ()
    dealt: Dealt | None = None
    sent: dict[str, Sent] = {}
    stored: dict[str, bytes] = {}
    agreed: dict[str, Agreed] = {}
    total: bytes | None = None
    answers: dict[str, bytes] = {}

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the sum, once encrypted updates are no longer waited for."""
        return tuple(sorted(self.sent.keys() & self.stored.keys()))


def dump(state: ServerState) -> bytes:
    """A state as bytes."""
    return msgspec.msgpack.encode(state)


def load(data: bytes) -> ServerState:
    """The state that `dump` wrote.

    Raises:
        VerificationFailed: if it is damaged.
    """
    try:
        return msgspec.msgpack.decode(data, type=ServerState)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise VerificationFailed(
            "the stored state of an encrypted sum is damaged; its round cannot be finished"
        ) from None


def circle(host: Host, state: ServerState) -> Circle:
    """Who takes part, once hellos are no longer waited for."""
    return Circle.of(host.run, state.number, host.scheme, host.length, state.cohort)


def awaited(host: Host, state: ServerState) -> frozenset[ClientId]:
    """Who can still answer in this phase."""
    return expected(host, state) - answered(state)


def proposal(host: Host, state: ServerState) -> Proposal:
    """Whose updates are in, and by what they are multiplied."""
    rows = {name: Proposed(sent_digest(state.sent[name]), host.weights.get(name, 1)) for name in state.survivors}
    return Proposal(state.number, rows)


def message(host: Host, state: ServerState, name: ClientId) -> FromServer:
    """What a client is told in this phase."""
    if state.phase == "agree":
        return proposal(host, state)
    round = circle(host, state)
    if state.phase == "open":
        signed = sorted(state.agreed)[: round.quorum]
        sent = {other: _forwarded(state.sent[other], name) for other in state.survivors}
        total = state.total if name in round.openers else None
        return Mandate(state.number, {other: state.agreed[other].signature for other in signed}, sent, total)
    gathering = Gathering(state.number, state.cohort, {other: state.hellos[other].keys for other in round.committees})
    if state.dealt is None:
        return gathering
    return Keys(state.number, gathering, state.dealt.public, state.dealt.signature, state.dealt.letters.get(name))


def _forwarded(sent: Sent, receiver: ClientId) -> Forwarded:
    return Forwarded(sent.update, letter_digests(sent.letters), sent.letters[receiver], sent.signature)


def answered(state: ServerState) -> frozenset[ClientId]:
    """Who did in this phase; whoever of the expected ones is not waited for."""
    match state.phase:
        case "advertise":
            return frozenset(state.hellos)
        case "deal":
            return frozenset() if state.dealt is None else frozenset(state.hellos)
        case "mask":
            return frozenset(state.survivors)
        case "agree":
            return frozenset(state.agreed)
        case "open":
            return frozenset(state.answers)
        case "add" | "opened" | "aborted":
            return frozenset()
        case _:
            assert_never(state.phase)


def expected(host: Host, state: ServerState) -> frozenset[ClientId]:
    """Who can answer in this phase."""
    match state.phase:
        case "advertise":
            return frozenset(state.invited)
        case "deal":
            return frozenset({circle(host, state).dealer})
        case "mask":
            return frozenset(state.hellos)
        case "agree":
            return frozenset(state.survivors)
        case "open":
            return frozenset(circle(host, state).committees) & state.agreed.keys()
        case "add" | "opened" | "aborted":
            return frozenset()
        case _:
            assert_never(state.phase)


def entries(host: Host, state: ServerState) -> tuple[Entry, ...]:
    """Everybody who said hello, as all are told of them."""
    return tuple(
        Entry(name, host.trusted[name], keys_digest(hello.keys), hello.signature)
        for name, hello in sorted(state.hellos.items())
    )
