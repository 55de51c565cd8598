"""A round whose updates are added up secretly: `koinon.secure`'s server inside the session's state machine.

Rules:
    - nobody is waited for longer than there is hope: who is gone has a moment to come back, everyone else as long as a silent
      node is kept;
    - a phase that could not go on with those who have answered is given the round's whole deadline first;
    - before anybody was asked to sign who survived, a sum that cannot be made is tried again among those who are here; nodes
      mask the same updates anew;
    - after that it is not, since a node signs for its update once: the round then closes without any;
    - a node hears by the next task, or the end of the run, that its update counts: then the sum is durable.
"""

from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass, field, replace
from typing import assert_never

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.core.types import ClientId
from koinon.protocol.events import Disconnect, Effect, Persist, Send, Summed
from koinon.protocol.messages import ATTEMPTS, CHUNK_BYTES, Offer, Summing
from koinon.secure import groups, messages, server
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
from koinon.secure.groups import HallState
from koinon.secure.hosting import Host, Phase, ServerState
from koinon.secure.opening import Opening

GRACE_S = 5.0
"""Seconds that those who are gone have to come back before the others go on without them."""

_LAST: tuple[Phase, ...] = ("opened", "aborted")
_SIGNING: tuple[Phase, ...] = ("agree", "unmask", "opened")

_SAYS: dict[Phase, str] = {
    "advertise": "keys",
    "share": "shares of keys",
    "mask": "masked updates",
    "agree": "signatures of who survived",
    "unmask": "shares that open the sum",
}


@dataclass(frozen=True, slots=True)
class Sum:
    """The secure sum of an open round.

    Attributes:
        host: What the server knows beforehand.
        hall: How far it is.
        attempt: The how manieth try, from 0.
        since: Session time when the phase of each group began.
        openings: Of the groups that are known by their sum.
        reasons: Why the others are not.
        signing: Whether anybody was asked to sign who survived.
    """

    host: Host
    hall: HallState
    attempt: int
    since: tuple[float, ...]
    openings: tuple[Opening, ...] = ()
    reasons: tuple[str, ...] = field(default=())
    signing: bool = False

    @property
    def failed(self) -> str:
        """Why there is no sum of any group; empty as long as there can be one."""
        return "; ".join(self.reasons) if self.hall.over and not self.openings else ""

    @property
    def masked(self) -> frozenset[ClientId]:
        """Whose masked updates are here."""
        return frozenset().union(*(room.masked.keys() for room in self.hall.rooms))

    @property
    def survivors(self) -> frozenset[ClientId]:
        """Whose updates are in the sums."""
        return frozenset(name for opening in self.openings for name in opening.survivors)

    def waiting_for(self, round: int) -> str:
        """In one line for a person."""
        rooms = [room for room in self.hall.rooms if room.phase not in _LAST]
        said = " and ".join(dict.fromkeys(_SAYS[room.phase] for room in rooms if room.phase in _SAYS))
        names = ", ".join(sorted(frozenset().union(*(server.awaited(room) for room in rooms))))
        again = f" (attempt {self.attempt + 1})" if self.attempt else ""
        return f"the secure sum of round {round}{again}: {said} from {names}"


Step = tuple[Sum, tuple[Effect, ...]]


def admissible(host: Host, nodes: int) -> bool:
    """Whether so many nodes can add up secretly."""
    try:
        host.scheme.admit(nodes)
    except AdmissionError:
        return False
    return True


def wanting(host: Host, needed: int) -> Host:
    """The server of a round that does not go on with fewer updates than it needs; of groups, each has its own minimum."""
    if host.scheme.group_size is not None:
        return host
    return replace(host, scheme=replace(host.scheme, minimum=max(host.scheme.minimum, needed)))


def number(round: int, attempt: int) -> int:
    """What the secure sum calls this try: larger than all before."""
    return (round - 1) * ATTEMPTS + attempt + 1


def begun(host: Host, round: int, attempt: int, cohort: Iterable[ClientId], now: float) -> Sum:
    """A sum among these nodes, of whom nobody has said anything."""
    return Sum(host, HallState(ServerState(number(round, attempt), tuple(cohort))), attempt, (now,))


def heard(sum: Sum, round: int, node: ClientId, data: bytes, now: float) -> Step:
    """A node said something in the sum's own words."""
    try:
        message: messages.FromClient = messages.decode(data, messages.FromClient, CHUNK_BYTES)
        if isinstance(message, messages.Masked):
            raise ProtocolViolation("a masked update is offered, and comes in chunks")
    except ProtocolViolation as error:
        return sum, (Disconnect(node, str(error), final=True),)
    after, effects = _step(sum, Received(node, message), now)
    if after.hall == sum.hall:
        return after, effects
    return after, (Persist(Summed(round, node, data)), *effects)


def stored(sum: Sum, round: int, node: ClientId, offer: Offer, now: float) -> Step:
    """A node's masked update is durable."""
    after, effects = _step(sum, Stored(node, bytes.fromhex(offer.update.digest)), now)
    if after.hall == sum.hall:
        return after, effects
    return after, (Persist(Summed(round, node, offer=offer)), *effects)


def returned(sum: Sum, node: ClientId, now: float) -> Step:
    """A node is back and may have missed what it was told."""
    return _step(sum, Returned(node), now)


def repeated(sum: Sum, record: Summed, now: float) -> Sum:
    """The sum after what a record says, told to nobody."""
    event: ServerEvent
    if record.node is None:
        event = Elapsed(record.group)
    elif record.offer is not None:
        event = Stored(record.node, bytes.fromhex(record.offer.update.digest))
    else:
        event = Received(record.node, messages.decode(record.message, messages.FromClient, CHUNK_BYTES))
    return _step(sum, event, now)[0]


def masked_bytes(sum: Sum, node: ClientId) -> int | None:
    """Bytes of the masked update that a node is to offer now; None if none is wanted of it."""
    room = sum.hall.rooms[sum.hall.room(node)]
    if room.phase != "mask" or node not in server.awaited(room) | room.masked.keys():
        return None
    return server.cohort(sum.host, room).ring.wire_bytes


@dataclass(frozen=True, slots=True)
class Moment:
    """What of the world a sum is told.

    Attributes:
        now: Session time.
        gone: Who is not connected.
        deadline_s: Seconds that the phases after the masked updates may take.
        silence_s: Seconds that one is waited for who says nothing, where there is nothing to compute.
    """

    now: float
    gone: Set[ClientId]
    deadline_s: float
    silence_s: float


def timed(sum: Sum, round: int, out: Collection[ClientId], wanted: int, deadline: float, moment: Moment) -> Step:
    """End each phase that need not be waited for any more.

    Args:
        out: Whose part in the round has ended.
        wanted: Masked updates that are enough.
        deadline: Session time when masked updates must be there.
    """
    effects: tuple[Effect, ...] = ()
    while (due := _due(sum, frozenset(out), wanted, deadline, moment)) is not None:
        sum, more = _step(sum, Elapsed(due), moment.now)
        effects = (*effects, Persist(Summed(round, None, group=due)), *more)
    return sum, effects


def _due(sum: Sum, out: frozenset[ClientId], wanted: int, deadline: float, moment: Moment) -> int | None:
    """A group whose phase is to end."""
    for place, (room, since) in enumerate(zip(sum.hall.rooms, sum.since, strict=True)):
        if room.phase in _LAST:
            continue
        awaited, waited = server.awaited(room) - out, moment.now - since
        if room.phase == "mask":
            over = len(sum.masked) >= wanted or moment.now >= deadline
        else:
            over = waited >= moment.silence_s or (waited >= GRACE_S and awaited <= moment.gone)
        if awaited and not over:
            continue
        last = since + moment.deadline_s if room.phase in _SIGNING else deadline
        hopeless = any(isinstance(effect, Abort) for effect in groups.step(sum.host, sum.hall, Elapsed(place))[1])
        if not hopeless or moment.now >= last:
            return place
    return None


def _step(sum: Sum, event: ServerEvent, now: float) -> Step:
    hall, said = groups.step(sum.host, sum.hall, event)
    before = [(room.phase, since) for room, since in zip(sum.hall.rooms, sum.since, strict=True)]
    phases = [room.phase for room in hall.rooms]
    if len(before) != len(phases):  # the groups have formed
        before = [("advertise", now)] * len(phases)
    since = tuple(since if phase == known else now for phase, (known, since) in zip(phases, before, strict=True))
    sum = replace(sum, hall=hall, since=since, signing=sum.signing or any(phase in _SIGNING for phase in phases))
    effects: list[Effect] = []
    for each in said:
        sum, more = _translated(sum, each)
        effects.extend(more)
    return sum, tuple(effects)


def _translated(sum: Sum, effect: ServerEffect) -> Step:
    match effect:
        case Tell(client, message):
            return sum, (Send(client, Summing(messages.encode(message))),)
        case Refuse(client, reason, at_fault):
            return sum, (Disconnect(client, reason, final=True),) if at_fault else ()
        case Open(opening):
            return replace(sum, openings=(*sum.openings, opening)), ()
        case Abort(reason):
            return replace(sum, reasons=(*sum.reasons, reason)), ()
        case Keep():
            raise AssertionError("masked updates come by another way")
        case _:
            assert_never(effect)
