"""The server's side of a run, as a pure state machine: who is here, which round is open, what comes next.

`step(terms, state, event) -> (state, effects)` has no clock, no socket and no randomness of its own. The
network server, the simulator and the fault simulator all drive this function.

Rules:
    - a round opens when at least `terms.minimum_nodes` are here, and the cohort is on disk before anyone is asked;
    - a node that comes back is given again what it still owes, or the final model;
    - when someone comes with a connected node's identity, the connected one has a moment to show that it is alive;
    - a node that is silent for `terms.silence_s` is cut; one that leaves politely is not waited for, if
      the round can do without it;
    - rounds never go back, and after the last one every node that took part gets the final model;
    - a node is sent the model from where its copy ends, or what leads there from an earlier one that it holds, and once
      the model itself if it says that this does not lead there;
    - where updates are added up secretly, `koinon.protocol.secret` says what a round waits for;
    - the session's own clock never runs backwards and never jumps: what the world's clock skips is not charged
      to anyone's deadline.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, assert_never

from msgspec.structs import replace

from koinon.core.types import ClientId, canonical
from koinon.protocol import round as rounds
from koinon.protocol import secret, sums
from koinon.protocol.events import (
    Arrived,
    Close,
    Closed,
    Contested,
    Disconnect,
    Effect,
    Event,
    HandedOver,
    Joined,
    Left,
    Persist,
    Received,
    RoundExtended,
    RoundOpened,
    RunEnded,
    Send,
    Settled,
    Stopped,
    Stream,
    Summed,
    Tick,
)
from koinon.protocol.lineage import lacking, leading, shown
from koinon.protocol.messages import (
    ATTEMPTS,
    Blob,
    Chunk,
    Declined,
    Delivered,
    Delta,
    Failed,
    Finished,
    Heartbeat,
    Leave,
    Offer,
    Probe,
    Ready,
    Refused,
    Summing,
    Task,
)
from koinon.protocol.round import RoundState
from koinon.protocol.state import Member, SessionState, Terms
from koinon.protocol.sums import Moment

LONGEST_TICK_S = 10.0
"""Most session time that one tick can take, whatever the world's clock says."""

PROBE_S = 5.0
"""Seconds that a connected node has to answer when someone else comes with its identity."""

Step: TypeAlias = tuple[SessionState, tuple[Effect, ...]]


def step(terms: Terms, state: SessionState, event: Event) -> Step:
    """The next state and what is to be done, in order."""
    match event:
        case Joined():
            return _joined(terms, state, event)
        case Left():
            return _left(state, event.node)
        case Contested():
            return _contested(state, event.node)
        case Received():
            return _received(terms, state, event)
        case Arrived():
            if state.round is None:
                return state, (_not_open(event.node, event.round, state),)
            if state.round.sum is not None:
                return _in_round(terms, state, secret.arrived(state.round, event, _moment(terms, state)))
            return _in_round(terms, state, rounds.arrived(state.round, event))
        case Closed():
            return _closed(terms, state, event)
        case Tick():
            return _tick(terms, state, event.now)
        case Stopped():
            return _ended(state, "aborted", event.reason) if state.status == "running" else (state, ())
        case _:
            assert_never(event)


def _joined(terms: Terms, state: SessionState, event: Joined) -> Step:
    before = state.members.get(event.node)
    member = Member(True, state.now, event.ready, before is not None and before.delivered)
    state = replace(state, members={**state.members, event.node: member})
    if state.status != "running":
        return _final(state, event.node)
    open_round = state.round
    if open_round is None:
        return _opened(terms, state)
    if open_round.closing:
        return state, ()
    if open_round.sum is not None:
        return _back(terms, state, open_round, event.node)
    if open_round.lacks(event.node):
        return _asked(terms, state, open_round, [event.node])
    if open_round.overdue and not open_round.has(event.node) and terms.secret_cohort is None:
        return _extended(terms, state, open_round)
    return state, ()


def _left(state: SessionState, node: ClientId) -> Step:
    member = state.members.get(node)
    if member is None:
        return state, ()
    return replace(state, members={**state.members, node: replace(member, here=False, probed=None)}), ()


def _contested(state: SessionState, node: ClientId) -> Step:
    member = state.members.get(node)
    if member is None or not member.here or member.probed is not None:
        return state, ()
    members = {**state.members, node: replace(member, probed=state.now + PROBE_S)}
    return replace(state, members=members), (Send(node, Probe()),)


def _received(terms: Terms, state: SessionState, event: Received) -> Step:
    node, message = event.node, event.message
    member = state.members.get(node)
    if member is None:
        return state, (Disconnect(node, "the node has not joined", final=False),)
    state = replace(state, members={**state.members, node: replace(member, heard=state.now, probed=None)})
    match message:
        case Heartbeat():
            return state, (Send(node, Heartbeat()),)
        case Summing():
            if state.round is None:
                return state, ()
            result = secret.heard(state.round, node, message.message, _moment(terms, state))
            return _in_round(terms, state, result)
        case Offer():
            if state.round is None:
                return state, (_not_open(node, message.round, state),)
            if state.round.sum is not None:
                result = secret.offered(state.round, node, message)
            else:
                result = rounds.offered(state.round, node, message, terms.update_bytes)
            return _in_round(terms, shown(state, node, message.round), result)
        case Declined() | Failed():
            if state.round is None:
                return state, ()
            return _settled(terms, state, rounds.answered(state.round, node, message))
        case Delivered():
            return _delivered(state, node, message)
        case Leave():
            return _gone(terms, state, node, message)
        case Ready() if member.patched:
            return _joined(terms, state, Joined(node, message))
        case Ready() | Chunk():
            return state, (Disconnect(node, f"{type(message).__name__} was not expected here", final=False),)
        case _:
            assert_never(message)


def _back(terms: Terms, state: SessionState, open_round: RoundState, node: ClientId) -> Step:
    """A node is here again while updates are added up secretly: it is asked again, unless its masked one is here."""
    if not open_round.lacks(node):
        return state, ()
    asked: tuple[Effect, ...] = ()
    if not open_round.has_masked(node):
        state, asked = _asked(terms, state, open_round, [node])
    state, more = _in_round(terms, state, secret.returned(open_round, node, _moment(terms, state)))
    return state, (*asked, *more)


def _moment(terms: Terms, state: SessionState) -> Moment:
    gone = () if state.round is None else state.round.cohort
    away = frozenset(node for node in gone if node not in state.members or not state.members[node].here)
    return Moment(state.now, away, terms.deadline_s, terms.silence_s)


def _tried_again(terms: Terms, state: SessionState, round: RoundState) -> Step:
    """Open a round whose secure sum was lost once more, among those who are here now."""
    attempt = state.attempt + 1
    if attempt == ATTEMPTS:
        reason = (
            f"round {round.number} could not be added up in {ATTEMPTS} attempts; the last one: {secret.lost(round)}"
        )
        return _ended(state, "aborted", reason)
    excused = state.excused | round.outcomes.keys()
    return _opened(terms, replace(state, round=None, attempt=attempt, excused=excused))


def _settled(terms: Terms, state: SessionState, result: rounds.Step) -> Step:
    """A node's part has ended, for which a secure sum waits no more."""
    round, effects = result
    round, more = secret.waited(round, _moment(terms, state))
    return _in_round(terms, state, (round, (*effects, *more)))


def _in_round(terms: Terms, state: SessionState, result: rounds.Step) -> Step:
    round, effects = result
    if secret.lost(round):
        state, more = _tried_again(terms, state, round)
        return state, (*effects, *more)
    if not round.stuck or round == state.round:
        return replace(state, round=round), effects
    state, more = _extended(terms, state, round)
    return state, (*effects, *more)


def _not_open(node: ClientId, round: int, state: SessionState) -> Send:
    return Send(node, Refused(round, f"round {round} is not open; {state.completed} rounds are closed"))


def _delivered(state: SessionState, node: ClientId, message: Delivered) -> Step:
    if state.status == "running" or message.model != state.model.digest:
        return state, ()
    members = {**state.members, node: replace(state.members[node], delivered=True)}
    effects = Persist(HandedOver(node, message)), Disconnect(node, "the run is over", final=True)
    return replace(state, members=members), effects


def _gone(terms: Terms, state: SessionState, node: ClientId, message: Leave) -> Step:
    members = {name: member for name, member in state.members.items() if name != node}
    state, effects = replace(state, members=members), (Disconnect(node, "until next time", final=True),)
    if state.round is not None and state.round.lacks(node) and state.round.can_spare(node):
        result = rounds.settled(state.round, node, "declined", f"left: {message.reason}")
        state, more = _settled(terms, state, result)
        return state, (*effects, *more)
    return state, effects


def _closed(terms: Terms, state: SessionState, event: Closed) -> Step:
    if state.round is None or event.round != state.round.number:
        return state, ()
    told = secret.told(state.round, event.spoiled)
    state, effects = _next(terms, state, event)
    return state, (*told, *effects)


def _next(terms: Terms, state: SessionState, event: Closed) -> Step:
    """The next round, or the end."""
    deltas = state.deltas if event.model == state.model else leading(state.deltas, event.delta, event.model)
    state = replace(
        state,
        round=None,
        attempt=0,
        excused=frozenset(),
        completed=event.round,
        model=event.model,
        told=event.told,
        deltas=deltas,
    )
    if event.enough or state.completed >= terms.rounds:
        return _ended(state, "finished", event.enough)
    return _opened(terms, state)


def _ended(state: SessionState, status: Literal["finished", "aborted"], reason: str) -> Step:
    state = replace(state, status=status, reason=reason, round=None)
    effects: list[Effect] = [Persist(RunEnded(status, reason))]
    for node in state.present:
        state, more = _final(state, node)
        effects.extend(more)
    return state, tuple(effects)


def _final(state: SessionState, node: ClientId) -> Step:
    if state.status == "aborted":
        return state, (Disconnect(node, f"the run was aborted: {state.reason}", final=True),)
    state, deltas, streams = lacking(state, node)
    return state, (Send(node, Finished(state.completed, state.model, deltas)), *streams)


def _opened(terms: Terms, state: SessionState) -> Step:
    present = state.willing
    if len(present) < max(terms.minimum_nodes, terms.least if terms.minimum_nodes else 0):
        return state, ()
    number = state.completed + 1
    cohort = tuple(canonical(terms.draw(number, _sizes(state, present))))
    least = terms.least if cohort else 0
    wanted = max(least, math.ceil(len(cohort) / (1 + terms.over_selection) - 1e-9))
    needed = max(least, math.ceil(wanted * terms.quorum - 1e-9))
    if terms.secret_cohort is not None:
        wanted, needed = len(cohort), 0
    opened = RoundState(number, cohort, wanted, needed, state.now + terms.deadline_s)
    record = Persist(RoundOpened(number, cohort, wanted, needed, state.attempt))
    if terms.host is not None:
        if not sums.admissible(terms.host, len(cohort)):
            return state, ()
        opened = secret.begun(terms.host, opened, state.attempt, state.now)
    if not cohort:  # Poisson sampling may choose nobody; without noise the model stays
        return replace(state, round=replace(opened, closing=True)), (record, Close(number, (), ()))
    state, effects = _asked(terms, replace(state, round=opened), opened, cohort)
    return state, (record, *effects)


def _extended(terms: Terms, state: SessionState, open_round: RoundState) -> Step:
    others = [node for node in state.present if node not in open_round.cohort]
    drawn: Sequence[ClientId] = ()
    if others and terms.secret_cohort is None:
        drawn = terms.draw(open_round.number, _sizes(state, others)) or others  # Poisson sampling may choose nobody
    extended, effects = rounds.extended(open_round, drawn, state.now + terms.deadline_s)
    state, more = _asked(terms, replace(state, round=extended), extended, canonical(drawn))
    return state, (*effects, *more)


def _asked(terms: Terms, state: SessionState, open_round: RoundState, nodes: Sequence[ClientId]) -> Step:
    effects: list[Effect] = []
    remaining = max(0.0, open_round.deadline - state.now)
    cohort = len(open_round.cohort) if terms.secret_cohort is None else terms.secret_cohort
    told = dict(state.told)
    for node in nodes:
        if node not in state.members or not state.members[node].here:
            continue
        deltas: tuple[Delta, ...] = ()
        streams: tuple[Stream, ...] = ()
        if state.members[node].ready.trained != open_round.number:
            state, deltas, streams = lacking(state, node)
        attempt = None if open_round.sum is None else open_round.sum.attempt
        effects += [
            Send(node, Task(open_round.number, state.model, cohort, remaining, told, deltas, attempt)),
            *streams,
        ]
    return state, tuple(effects)


def _sizes(state: SessionState, nodes: Sequence[ClientId]) -> dict[ClientId, int]:
    return {node: state.members[node].ready.examples for node in nodes}


def _tick(terms: Terms, state: SessionState, world: float) -> Step:
    elapsed = 0.0 if state.world is None else min(max(world - state.world, 0.0), LONGEST_TICK_S)
    now = state.now + elapsed
    effects: list[Effect] = []
    members = dict(state.members)
    for node, member in state.members.items():
        lost = now - member.heard >= terms.silence_s or (member.probed is not None and now >= member.probed)
        if member.here and lost:
            members[node] = replace(member, here=False, probed=None)
            effects.append(Disconnect(node, f"nothing heard for {now - member.heard:.0f} s", final=False))
    state = replace(state, now=now, world=world, members=members)
    if state.status != "running":
        return state, tuple(effects)
    state, more = _due(terms, state)
    return state, (*effects, *more)


def _due(terms: Terms, state: SessionState) -> Step:
    """What is to be done now that time has passed."""
    round = state.round
    if round is None:
        return _opened(terms, state)
    if round.sum is not None:
        return _in_round(terms, state, secret.waited(round, _moment(terms, state)))
    round, effects = rounds.expired(round, state.now)
    state = replace(state, round=round)
    if not round.closing and state.now >= round.deadline:
        return _extended(terms, state, round)
    return state, effects


def restored(
    terms: Terms,
    model: Blob,
    completed: int,
    status: Literal["running", "finished", "aborted"],
    open_round: tuple[RoundOpened, tuple[RoundExtended, ...], tuple[Settled, ...], tuple[Summed, ...]] | None,
    nodes: Mapping[ClientId, bool],
    told: Mapping[str, float] | None = None,
    deltas: tuple[Delta, ...] = (),
) -> Step:
    """The state of a server that starts again, from what its predecessor made durable.

    Args:
        terms: What the server was started with; the open round's cohort has the whole deadline again.
        model: The last durable model.
        completed: Closed rounds.
        status: How the run stood.
        open_round: The records of the round that was open, or None.
        nodes: Every node that was ever asked -> whether it holds the final model.
        told: What nodes are told beside the model.
        deltas: What leads to it from those before, the oldest first.
    """
    members = {node: Member(here=False, heard=0.0, delivered=delivered) for node, delivered in nodes.items()}
    state = SessionState(model, completed, status, told=told or {}, deltas=deltas, members=members)
    if status != "running":
        return state, ()
    if open_round is None:
        return _ended(state, "finished", "") if completed >= terms.rounds else (state, ())
    opened, extensions, settlements, summed = open_round
    cohort = canonical({*opened.cohort, *(node for extension in extensions for node in extension.added)})
    round = RoundState(
        opened.round,
        tuple(cohort),
        opened.wanted,
        opened.needed,
        terms.deadline_s,
        {record.node: record.outcome for record in settlements},
        {record.node: record.offer for record in settlements if record.offer is not None},
    )
    if not opened.cohort:
        return replace(state, round=replace(round, closing=True)), (Close(opened.round, (), ()),)
    if terms.host is not None:
        state = replace(state, round=round, attempt=opened.attempt)
        resumed = secret.resumed(terms.host, round, opened.attempt, summed, _moment(terms, state))
        return _in_round(terms, state, resumed)
    round, effects = rounds.closed_if_complete(round)
    return replace(state, round=round), effects
