"""The server's side of a sum of encrypted updates, as a pure state machine.

Rules:
    - only who was invited and signed its keys takes part; the dealer makes the key, and without it there is no round;
    - a client is in when it has said what it sends *and* its encrypted update is durable, with that digest, before its phase ends;
    - a phase ends when everybody expected has answered, or when the caller says that time is up (`Elapsed`);
    - the sum is that of all who are in, whoever of them signs: a quorum must, and enough of both committees;
    - answers of a committee count when there are `openers` of them at least and all are equal to the bit;
    - where too few answered, the round ends with how many did and how many are needed;
    - a client that says the same again is told the same again.

The state holds no vector and no ciphertext. Encrypted updates come by another way (`Stored`), `Add` has the caller add them up,
and answers are handed to it (`Keep`), or come by another way too. All other effects come after the state is durable.
"""

import hashlib
from typing import Any, TypeAlias, assert_never

import msgspec

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.core.types import ClientId
from koinon.secure import keys
from koinon.secure.encrypted.circle import keys_digest, letter_digests, to_greet
from koinon.secure.encrypted.events import Add, Added, ServerEffect, ServerEvent
from koinon.secure.encrypted.hosting import (
    Host,
    Phase,
    ServerState,
    awaited,
    circle,
    dump,
    entries,
    expected,
    load,
    message,
    proposal,
)
from koinon.secure.encrypted.messages import Answer, Dealt, FromClient, Hello, Sent
from koinon.secure.encrypted.opening import Opening
from koinon.secure.events import Abort, Elapsed, Keep, Open, Received, Refuse, Returned, Stored, Tell
from koinon.secure.messages import Agreed

__all__ = ["Host", "ServerState", "awaited", "circle", "dump", "load", "proposal", "step"]

Step: TypeAlias = tuple[ServerState, tuple[ServerEffect, ...]]


def step(host: Host, state: ServerState, event: ServerEvent) -> Step:
    """What happens next."""
    match event:
        case Received(client, message):
            return _received(host, state, client, message)
        case Stored(client, digest):
            return _stored(host, state, client, digest)
        case Added(digest):
            if state.phase != "add":
                return state, ()
            return _told(host, msgspec.structs.replace(state, total=digest), "open")
        case Returned(client):
            return state, _again(host, state, client)
        case Elapsed():
            return _ended(host, state)
        case _:
            assert_never(event)


def _received(host: Host, state: ServerState, client: ClientId, message: FromClient) -> Step:
    phase, known = _place(state, client, message)
    if message.round != state.number:
        return state, (Refuse(client, f"round {message.round} is not open; the server is at round {state.number}"),)
    if known is not None:
        said = hashlib.sha256(message.data).digest() if isinstance(message, Answer) else message
        if known == said:  # who says again what it sends has heard already what it was told
            return state, () if isinstance(message, Sent) else _again(host, state, client)
        return state, (Refuse(client, f"a second, different {type(message).__name__} for the same round"),)
    if (reason := _untimely(host, state, client, phase, type(message).__name__)) is not None:
        return state, (Refuse(client, reason),)
    try:
        state, effects = _taken(host, state, client, message)
    except ProtocolViolation as error:
        return state, (Refuse(client, str(error), at_fault=True),)
    return _ended_if_complete(host, state, effects)


def _stored(host: Host, state: ServerState, client: ClientId, digest: bytes) -> Step:
    """An encrypted update is durable, or in the last phase an answer."""
    if digest in (state.stored.get(client), state.answers.get(client)):
        return state, _again(host, state, client)
    if state.phase == "open" and client in awaited(host, state):
        return _ended_if_complete(host, _with(state, answers={client: digest}), ())
    if client in state.stored:
        return state, (Refuse(client, "a second, different encrypted update for the same round"),)
    if (reason := _untimely(host, state, client, "mask", "an encrypted update")) is not None:
        return state, (Refuse(client, reason),)
    if client in state.sent and state.sent[client].update != digest:
        return state, (Refuse(client, "the encrypted update is not the one that was signed", at_fault=True),)
    return _ended_if_complete(host, _with(state, stored={client: digest}), ())


def _untimely(host: Host, state: ServerState, client: ClientId, phase: Phase, what: str) -> str | None:
    """Why what belongs into a phase does not count now."""
    if state.phase != phase:
        return f"{what} counts in the phase {phase!r}; this is {state.phase!r}"
    return None if client in expected(host, state) else f"{client} is not expected in the phase {phase!r}"


def _ended_if_complete(host: Host, state: ServerState, effects: tuple[ServerEffect, ...]) -> Step:
    if awaited(host, state):
        return state, effects
    state, more = _ended(host, state)
    return state, (*effects, *more)


def _taken(host: Host, state: ServerState, client: ClientId, message: FromClient) -> Step:
    """The message is in its place, or a ProtocolViolation says why not."""
    match message:
        case Hello():
            signed = to_greet(host.run, state.number, client, keys_digest(message.keys))
            keys.verified(host.trusted, client, signed, message.signature)
            return _with(state, hellos={client: message}), ()
        case Dealt():
            round = circle(host, state)
            if message.letters.keys() != set(round.openers) - {client}:
                raise ProtocolViolation("the dealer seals the key for all openers and for nobody else")
            keys.verified(host.trusted, client, round.to_deal(message.public), message.signature)
            return msgspec.structs.replace(state, dealt=message), ()
        case Sent():
            round = circle(host, state)
            assert state.dealt is not None
            if message.letters.keys() != set(round.committees):
                raise ProtocolViolation("a client seals the seeds of its masks for both committees and for nobody else")
            if state.stored.get(client, message.update) != message.update:
                raise ProtocolViolation("the encrypted update is not the one that was signed")
            letters = letter_digests(message.letters)
            signed = round.to_send(client, state.dealt.public, message.update, letters)
            keys.verified(host.trusted, client, signed, message.signature)
            return _with(state, sent={client: message}), ()
        case Agreed():
            signed = circle(host, state).to_agree(proposal(host, state))
            keys.verified(host.trusted, client, signed, message.signature)
            return _with(state, agreed={client: message}), ()
        case Answer():
            expected = 4 * circle(host, state).packing.count
            if len(message.data) != expected:
                raise ProtocolViolation(f"an answer has {len(message.data)} bytes where {expected} were expected")
            digest = hashlib.sha256(message.data).digest()
            return _with(state, answers={client: digest}), (Keep(client, message.data),)
        case _:
            assert_never(message)


def _ended(host: Host, state: ServerState) -> Step:
    """The phase is over; the next one begins, or the round ends."""
    match state.phase:
        case "advertise":
            try:
                host.scheme.admit(len(state.hellos))
            except AdmissionError as error:
                return _aborted(state, f"{len(state.hellos)} of {len(state.invited)} clients advertised keys: {error}")
            return _told(host, msgspec.structs.replace(state, cohort=entries(host, state)), "deal")
        case "deal":
            if state.dealt is None:
                return _aborted(
                    state, f"{circle(host, state).dealer} did not make the round's key; try again without it"
                )
            return _told(host, state, "mask")
        case "mask":
            return _checked(host, state, "sent encrypted updates", frozenset(state.survivors), "agree")
        case "agree":
            return _checked(host, state, "signed the survivor set", state.agreed.keys(), "add")
        case "add":
            return state, (_add(host, state),)
        case "open" | "opened":
            return _opened(host, state)
        case "aborted":
            return state, ()
        case _:
            assert_never(state.phase)


def _checked(host: Host, state: ServerState, what: str, answered: Any, then: Phase) -> Step:
    """The next phase, if a quorum answered, and enough of each committee."""
    round, least = circle(host, state), host.scheme.openers
    if len(answered) < round.quorum:
        return _aborted(
            state, f"{len(answered)} of {len(round.digests)} clients {what}, at least {round.quorum} are needed"
        )
    for title, committee in (("openers", round.openers), ("keepers", round.keepers)):
        if (count := len(set(committee) & set(answered))) < least:
            return _aborted(state, f"{count} of {len(committee)} {title} {what}, at least {least} are needed")
    if then == "add":
        return msgspec.structs.replace(state, phase="add"), (_add(host, state),)
    return _told(host, state, then)


def _opened(host: Host, state: ServerState) -> Step:
    """The answers of both committees are compared."""
    round, first = circle(host, state), []
    for title, committee in (("openers", round.openers), ("keepers", round.keepers)):
        answers = {name: state.answers[name] for name in committee if name in state.answers}
        if len(answers) < host.scheme.openers:
            return _aborted(
                state, f"{len(answers)} of {len(committee)} {title} answered, at least {host.scheme.openers} are needed"
            )
        if len(set(answers.values())) > 1:
            return _aborted(
                state, f"the {title} {', '.join(answers)} do not say the same: one of them is wrong or lies"
            )
        first.append(min(answers))
    weights = {name: row.weight for name, row in proposal(host, state).survivors.items()}
    return msgspec.structs.replace(state, phase="opened"), (Open(Opening(round.ring, weights, *first)),)


def _add(host: Host, state: ServerState) -> Add:
    weights = {name: row.weight for name, row in proposal(host, state).survivors.items()}
    return Add(circle(host, state).parameters, weights)


def _told(host: Host, state: ServerState, phase: Phase) -> Step:
    state = msgspec.structs.replace(state, phase=phase)
    return state, tuple(Tell(name, message(host, state, name)) for name in sorted(expected(host, state)))


def _again(host: Host, state: ServerState, client: ClientId) -> tuple[ServerEffect, ...]:
    """What the client was told last, if it still is to answer."""
    if state.phase == "advertise" or client not in awaited(host, state):
        return ()
    return (Tell(client, message(host, state, client)),)


def _place(state: ServerState, client: ClientId, message: FromClient) -> tuple[Phase, Any]:
    """The phase in which a message counts, and what has come of this client in it."""
    match message:
        case Hello():
            return "advertise", state.hellos.get(client)
        case Dealt():
            return "deal", state.dealt
        case Sent():
            return "mask", state.sent.get(client)
        case Agreed():
            return "agree", state.agreed.get(client)
        case Answer():
            return "open", state.answers.get(client)
        case _:
            assert_never(message)


def _with(state: ServerState, **more: dict[str, Any]) -> ServerState:
    """With these added to what has come."""
    return msgspec.structs.replace(state, **{name: {**getattr(state, name), **new} for name, new in more.items()})


def _aborted(state: ServerState, reason: str) -> Step:
    return msgspec.structs.replace(state, phase="aborted"), (Abort(reason),)
