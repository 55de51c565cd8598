"""The server's side of a secure sum, as a pure state machine.

Rules:
    - only who was invited and signed its keys takes part, in each phase only who answered in the one before;
    - who has too few neighbours left to be opened is left out before anybody masks with it;
    - a phase ends when everybody expected has answered, or when the caller says that time is up (`Elapsed`);
    - a masked update counts only if it came before its phase ended, so that a late one stays hidden by its own mask;
    - nobody's shares are combined but by the survivors' answers, and a recovered seed must be the one that was advertised;
    - where too few answered, the round ends with how many did and how many are needed;
    - a client that says the same again is told the same again.

The state holds no vector: `Keep` hands one to the caller, who makes it durable *before* the state, and adds up what was
kept when `Open` says which masks are left over in the sum. All other effects come after the state is durable.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias, assert_never

import msgspec

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.core.types import ClientId
from koinon.secure import keys
from koinon.secure.cohort import Cohort
from koinon.secure.events import (
    Abort,
    Elapsed,
    Keep,
    Open,
    Received,
    Refuse,
    Returned,
    ServerEffect,
    ServerEvent,
    Stored,
    Tell,
)
from koinon.secure.hosting import (
    Host,
    Phase,
    ServerState,
    awaited,
    cohort,
    dump,
    entries,
    expected,
    load,
    messages_in,
)
from koinon.secure.messages import (
    Advert,
    Agreed,
    FromClient,
    Masked,
    Reveal,
    Shares,
)
from koinon.secure.opening import opened

__all__ = ["Host", "ServerState", "awaited", "begun", "cohort", "dump", "load", "step"]

Step: TypeAlias = tuple[ServerState, tuple[ServerEffect, ...]]


def step(host: Host, state: ServerState, event: ServerEvent) -> Step:
    """What happens next."""
    match event:
        case Received(client, message):
            return _received(host, state, client, message)
        case Stored(client, digest):
            return _stored(host, state, client, digest)
        case Returned(client):
            return state, _again(host, state, client)
        case Elapsed():
            return _ended(host, state)
        case _:
            assert_never(event)


def begun(host: Host, state: ServerState, group: int) -> Step:
    """One group of those who advertised goes on by itself."""
    members = Cohort.groups(host.run, state.number, host.scheme, host.length, state.cohort)[group].members
    adverts = {name: state.adverts[name] for name in members}
    return _told(host, msgspec.structs.replace(state, adverts=adverts, group=group), "share")


def _received(host: Host, state: ServerState, client: ClientId, message: FromClient) -> Step:
    phase, known = _place(state, message)
    if message.round != state.number:
        return state, (Refuse(client, f"round {message.round} is not open; the server is at round {state.number}"),)
    if client in known:
        stored = hashlib.sha256(message.data).digest() if isinstance(message, Masked) else message
        if known[client] == stored:
            return state, _again(host, state, client)
        return state, (Refuse(client, f"a second, different {type(message).__name__} for the same round"),)
    if (reason := _untimely(state, client, phase, type(message).__name__)) is not None:
        return state, (Refuse(client, reason),)
    try:
        state, effects = _taken(host, state, client, message)
    except ProtocolViolation as error:
        return state, (Refuse(client, str(error), at_fault=True),)
    return _ended_if_complete(host, state, effects)


def _stored(host: Host, state: ServerState, client: ClientId, digest: bytes) -> Step:
    """As `Received` of a `Masked`, whose bytes the caller has already."""
    if client in state.masked:
        reason = None if state.masked[client] == digest else "a second, different Masked for the same round"
        return state, _again(host, state, client) if reason is None else (Refuse(client, reason),)
    if (reason := _untimely(state, client, "mask", "Masked")) is not None:
        return state, (Refuse(client, reason),)
    return _ended_if_complete(host, msgspec.structs.replace(state, masked={**state.masked, client: digest}), ())


def _untimely(state: ServerState, client: ClientId, phase: Phase, what: str) -> str | None:
    """Why what belongs into a phase does not count now."""
    if state.phase != phase:
        return f"{what} counts in the phase {phase!r}; this is {state.phase!r}"
    return None if client in expected(state) else f"{client} is not expected in the phase {phase!r}"


def _ended_if_complete(host: Host, state: ServerState, effects: tuple[ServerEffect, ...]) -> Step:
    if awaited(state):
        return state, effects
    state, more = _ended(host, state)
    return state, (*effects, *more)


def _taken(host: Host, state: ServerState, client: ClientId, message: FromClient) -> Step:
    """The message is in its place, or a ProtocolViolation says why not."""
    match message:
        case Advert():
            digest = keys.keys_digest(message.channel, message.mask)
            signed = keys.to_sign(host.run, state.number, client, digest)
            keys.verified(host.trusted, client, signed, message.signature)
            return msgspec.structs.replace(state, adverts={**state.adverts, client: message}), ()
        case Shares():
            if message.parcels.keys() != cohort(host, state).neighbours(client):
                raise ProtocolViolation("a client deals shares to its neighbours, to all of them and to nobody else")
            if any((parcel.pairing is None) is (client < name) for name, parcel in message.parcels.items()):
                raise ProtocolViolation("the first of a pair by name says how they share a mask, and only the first")
            return msgspec.structs.replace(state, shares={**state.shares, client: message}), ()
        case Masked():
            expected = cohort(host, state).ring.wire_bytes
            if len(message.data) != expected:
                raise ProtocolViolation(f"a masked update has {len(message.data)} bytes where {expected} were expected")
            masked = {**state.masked, client: hashlib.sha256(message.data).digest()}
            return msgspec.structs.replace(state, masked=masked), (Keep(client, message.data),)
        case Agreed():
            signed = cohort(host, state).to_agree(state.survivors)
            keys.verified(host.trusted, client, signed, message.signature)
            return msgspec.structs.replace(state, agreed={**state.agreed, client: message}), ()
        case Reveal():
            near = cohort(host, state).neighbours(client) & state.shares.keys()
            alive = near & state.masked.keys()
            if message.self_masks.keys() != alive or message.mask_keys.keys() != near - alive:
                raise ProtocolViolation("one share for each neighbour that dealt any: its self-mask's if it survived")
            return msgspec.structs.replace(state, reveals={**state.reveals, client: message}), ()
        case _:
            assert_never(message)


def _ended(host: Host, state: ServerState) -> Step:
    """The phase is over; the next one begins, or the round ends."""
    least = host.scheme.minimum
    match state.phase:
        case "advertise":
            try:
                host.scheme.admit(len(state.adverts))
            except AdmissionError as error:
                return _aborted(state, f"{len(state.adverts)} of {len(state.invited)} clients advertised keys: {error}")
            state = msgspec.structs.replace(state, phase="advertised", cohort=entries(host, state))
            return (state, ()) if host.scheme.group_size is not None else begun(host, state, 0)
        case "advertised":
            return state, ()
        case "share":
            return _dealt(host, state)
        case "mask":
            if len(state.masked) < least:
                return _aborted(state, f"{len(state.masked)} clients sent masked updates; the minimum is {least}")
            return _checked(host, state, "sent masked updates", state.masked, "agree")
        case "agree":
            return _checked(host, state, "signed the survivor set", state.agreed, "unmask")
        case "unmask":
            return _checked(host, state, "revealed shares", state.reveals, "opened")
        case "opened":
            return state, (
                Open(opened(cohort(host, state), state.adverts, state.shares, state.survivors, state.reveals)),
            )
        case "aborted":
            return state, ()
        case _:
            assert_never(state.phase)


def _dealt(host: Host, state: ServerState) -> Step:
    """Masked updates are wanted of those who have a threshold of neighbours that dealt; nobody else is masked with."""
    round = cohort(host, state)
    core = round.core(state.shares)
    if len(core) < host.scheme.minimum:
        return _aborted(
            state,
            f"{len(state.shares)} of {len(round.members)} clients dealt shares; each needs that "
            f"{round.sizes.threshold} of its {round.sizes.neighbours} neighbours do",
        )
    shares = {name: dealt for name, dealt in state.shares.items() if name in core}
    return _told(host, msgspec.structs.replace(state, shares=shares), "mask")


def _checked(host: Host, state: ServerState, what: str, answered: Mapping[ClientId, Any], then: Phase) -> Step:
    """The next phase, if everybody who dealt shares has a threshold of neighbours among those who answered."""
    round = cohort(host, state)
    fewest, dealer = min(
        ((len(round.neighbours(name) & answered.keys()), name) for name in state.shares), default=(0, "")
    )
    if fewest < round.sizes.threshold:
        return _aborted(
            state,
            f"{len(answered)} of {len(round.members)} clients {what}: of the {round.sizes.neighbours} neighbours of {dealer} "
            f"{fewest} did, {round.sizes.threshold} are needed",
        )
    if then != "opened":
        return _told(host, state, then)
    try:
        opening = opened(round, state.adverts, state.shares, state.survivors, state.reveals)
    except ProtocolViolation as error:
        return _aborted(state, str(error))
    return msgspec.structs.replace(state, phase="opened"), (Open(opening),)


def _told(host: Host, state: ServerState, phase: Phase) -> Step:
    state = msgspec.structs.replace(state, phase=phase)
    say = messages_in(host, state)
    return state, tuple(Tell(name, say(name)) for name in sorted(expected(state)))


def _again(host: Host, state: ServerState, client: ClientId) -> tuple[ServerEffect, ...]:
    """What the client was told last, if it still is to answer."""
    if state.phase == "advertise" or client not in awaited(state):
        return ()
    return (Tell(client, messages_in(host, state)(client)),)


def _place(state: ServerState, message: FromClient) -> tuple[Phase, Mapping[ClientId, Any]]:
    """The phase in which a message counts, and what has come in it."""
    match message:
        case Advert():
            return "advertise", state.adverts
        case Shares():
            return "share", state.shares
        case Masked():
            return "mask", state.masked
        case Agreed():
            return "agree", state.agreed
        case Reveal():
            return "unmask", state.reveals
        case _:
            assert_never(message)


def _aborted(state: ServerState, reason: str) -> Step:
    return msgspec.structs.replace(state, phase="aborted"), (Abort(reason),)
