"""What the server of a secure sum knows of a round, and what it tells of it in each phase."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, assert_never

import msgspec

from koinon.core.errors import VerificationFailed
from koinon.core.types import ClientId
from koinon.secure import keys
from koinon.secure.cohort import Cohort
from koinon.secure.messages import (
    Advert,
    Agreed,
    Agreement,
    Delivery,
    Entry,
    FromServer,
    Invitation,
    Reveal,
    Shares,
    Survivors,
)
from koinon.secure.secure_sum import SecureSum

Phase: TypeAlias = Literal["advertise", "advertised", "share", "mask", "agree", "unmask", "opened", "aborted"]


@dataclass(frozen=True)
class Host:
    """What the server knows beforehand.

    Attributes:
        run: Id of the run.
        trusted: Clients' identity keys, by name.
        scheme: From the definition.
        length: D, coordinates of an update.
    """

    run: str
    trusted: Mapping[ClientId, bytes]
    scheme: SecureSum
    length: int


class ServerState(msgspec.Struct, frozen=True):
    """A round.

    Attributes:
        number: From 1.
        phase: What is waited for.
        invited: Who may advertise.
        adverts: Who did; in a group, those of the group.
        cohort: Everybody who did, once adverts are no longer waited for.
        group: Which group of the cohort this is.
        shares: Who dealt shares.
        masked: SHA-256 of the masked updates that were kept.
        agreed: Who signed the survivor set.
        reveals: Who revealed shares.
    """

    number: int
    invited: tuple[str, ...]
    phase: Phase = "advertise"
    adverts: dict[str, Advert] = {}
    cohort: tuple[Entry, ...] = ()
    group: int = 0
    shares: dict[str, Shares] = {}
    masked: dict[str, bytes] = {}
    agreed: dict[str, Agreed] = {}
    reveals: dict[str, Reveal] = {}

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the sum, once masked updates are no longer waited for."""
        return tuple(sorted(self.masked))


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
        raise VerificationFailed("the stored state of a secure sum is damaged; its round cannot be finished") from None


def cohort(host: Host, state: ServerState) -> Cohort:
    """The group's cohort, once adverts are no longer waited for."""
    return Cohort.groups(host.run, state.number, host.scheme, host.length, state.cohort)[state.group]


def awaited(state: ServerState) -> frozenset[ClientId]:
    """Who can still answer in this phase."""
    return expected(state) - answered(state).keys()


def messages_in(host: Host, state: ServerState) -> Callable[[ClientId], FromServer]:
    """What each client is told in this phase."""
    number, round, survivors = state.number, cohort(host, state), state.survivors

    def message(name: ClientId) -> FromServer:
        near = sorted(round.neighbours(name))
        match state.phase:
            case "share":
                adverts = {other: state.adverts[other] for other in near}
                return Invitation(number, state.cohort, adverts, round.sizes.threshold)
            case "mask":
                return Delivery(
                    number, {other: state.shares[other].parcels[name] for other in near if other in state.shares}
                )
            case "agree":
                return Survivors(number, survivors)
            case _:
                signed = [other for other in near if other in state.agreed][: round.sizes.threshold]
                return Agreement(number, {other: state.agreed[other].signature for other in signed})

    return message


def answered(state: ServerState) -> Mapping[ClientId, Any]:
    """Who did in this phase."""
    match state.phase:
        case "advertise":
            return state.adverts
        case "share":
            return state.shares
        case "mask":
            return state.masked
        case "agree":
            return state.agreed
        case "unmask":
            return state.reveals
        case "advertised" | "opened" | "aborted":
            return {}
        case _:
            assert_never(state.phase)


def expected(state: ServerState) -> frozenset[ClientId]:
    """Who can answer in this phase: who answered in the one before."""
    match state.phase:
        case "advertise":
            return frozenset(state.invited)
        case "share":
            return frozenset(state.adverts)
        case "mask":
            return frozenset(state.shares)
        case "agree":
            return frozenset(state.masked)
        case "unmask":
            return frozenset(state.agreed)
        case "advertised" | "opened" | "aborted":
            return frozenset()
        case _:
            assert_never(state.phase)


def entries(host: Host, state: ServerState) -> tuple[Entry, ...]:
    """Everybody who advertised, as all are told of them."""
    return tuple(
        Entry(name, host.trusted[name], keys.keys_digest(advert.channel, advert.mask), advert.signature)
        for name, advert in sorted(state.adverts.items())
    )
