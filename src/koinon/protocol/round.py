"""One round on the server, as a pure state machine.

Rules:
    - only a node of the cohort can take part, once;
    - an update counts when all its bytes are durable and sound, and never twice;
    - the round closes when `wanted` updates are in, when nobody is left to wait for, or at the deadline,
      and never with fewer than `needed`;
    - at the deadline with fewer, it asks other nodes that are present, and waits on;
    - once closing, nothing enters it any more: what comes late is refused with the reason;
    - where updates are added up secretly, an offered one is masked, and counts when the sum does.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from koinon.core.types import ClientId, canonical, in_order
from koinon.protocol.events import Arrived, Close, Effect, Expect, Outcome, Persist, RoundExtended, Send, Settled
from koinon.protocol.messages import Accepted, Declined, Failed, Offer, Refused
from koinon.protocol.sums import Sum


class RoundState(msgspec.Struct, frozen=True):
    """A round that is open or closing.

    Attributes:
        number: From 1.
        cohort: Nodes that were asked, in canonical order.
        wanted: Accepted updates that close the round at once.
        needed: Accepted updates without which it cannot close.
        deadline: Session time after which it closes with `needed`.
        outcomes: Nodes whose part is settled.
        offers: What nodes offered and the server agreed to take.
        overdue: Whether it once was past its deadline with fewer than `needed`, or ran out of nodes.
        closing: Whether `Close` was asked for.
        sum: How updates are added up secretly, where they are.
    """

    number: int
    cohort: tuple[ClientId, ...]
    wanted: int
    needed: int
    deadline: float
    outcomes: Mapping[ClientId, Outcome] = msgspec.field(default_factory=dict)
    offers: Mapping[ClientId, Offer] = msgspec.field(default_factory=dict)
    overdue: bool = False
    closing: bool = False
    sum: Sum | None = None

    @property
    def accepted(self) -> tuple[ClientId, ...]:
        """Nodes whose updates count, in canonical order."""
        return tuple(canonical(node for node, outcome in self.outcomes.items() if outcome == "accepted"))

    @property
    def missing(self) -> tuple[ClientId, ...]:
        """Nodes of the cohort that have not been settled."""
        return tuple(node for node in self.cohort if node not in self.outcomes)

    def has(self, node: ClientId) -> bool:
        """Whether the node is of the cohort; found by its order, since a cohort may have thousands."""
        place = bisect_left(self.cohort, in_order(node), key=in_order)
        return place < len(self.cohort) and self.cohort[place] == node

    def lacks(self, node: ClientId) -> bool:
        """Whether the node is of the cohort and has not been settled."""
        return node not in self.outcomes and self.has(node)

    @property
    def stuck(self) -> bool:
        """Whether everyone answered and too few were accepted, so that others must be asked."""
        everyone = len(self.outcomes) == len(self.cohort)
        return everyone and not self.closing and self.sum is None and len(self.accepted) < self.needed

    def has_masked(self, node: ClientId) -> bool:
        """Whether a node's masked update is here, which the others' masks count on."""
        return self.sum is not None and node in self.sum.masked

    def can_spare(self, node: ClientId) -> bool:
        """Whether enough can still be accepted when one of the missing, this one, never answers."""
        if self.sum is not None:
            return not self.closing and not self.has_masked(node)
        return not self.closing and len(self.accepted) + len(self.missing) > self.needed


Step = tuple[RoundState, tuple[Effect, ...]]


def offered(state: RoundState, node: ClientId, offer: Offer, size: int | None) -> Step:
    """A node offers an update; `size` is the bytes that an update must have, None when the codec decides."""
    if (reason := _objection(state, node, offer.round)) is not None:
        return state, (reason,)
    if size is not None and offer.update.size != size:
        return settled(
            state, node, "refused", f"the update has {offer.update.size} bytes, a model of this definition has {size}"
        )
    known = state.offers.get(node)
    if known is not None and known.update != offer.update:
        return settled(state, node, "refused", "a second, different update for the same round")
    return replace(state, offers={**state.offers, node: offer}), (Expect(node, offer),)


def arrived(state: RoundState, event: Arrived) -> Step:
    """An expected update's bytes are complete."""
    if (reason := _objection(state, event.node, event.round)) is not None:
        return state, (reason,)
    offer = state.offers.get(event.node)
    if offer is None or offer.update.digest != event.digest:
        return state, ()
    if event.fault is not None:
        return settled(state, event.node, "refused", event.fault)
    return settled(state, event.node, "accepted", "")


def answered(state: RoundState, node: ClientId, message: Declined | Failed) -> Step:
    """A node says that it will not or cannot do its part."""
    if message.round != state.number or not state.lacks(node) or state.closing:
        return state, ()
    if state.has_masked(node):
        return state, ()
    return settled(state, node, "declined" if isinstance(message, Declined) else "failed", message.reason)


def settled(state: RoundState, node: ClientId, outcome: Outcome, reason: str) -> Step:
    """End a node's part: on disk first, then told to the node."""
    offer = state.offers.get(node) if outcome == "accepted" else None
    effects: list[Effect] = [Persist(Settled(state.number, node, outcome, reason, offer))]
    if outcome == "accepted":
        effects.append(Send(node, Accepted(state.number)))
    elif outcome == "refused":
        effects.append(Send(node, Refused(state.number, reason)))
    state, more = closed_if_complete(replace(state, outcomes={**state.outcomes, node: outcome}))
    return state, (*effects, *more)


def closed_if_complete(state: RoundState) -> Step:
    """Close when as many as wanted are in, or when nobody is left to wait for and enough are in."""
    answered = len(state.outcomes)
    if (
        state.closing or state.sum is not None or answered < min(state.wanted, len(state.cohort))
    ):  # most replies end here, in constant time
        return state, ()
    accepted = len(state.accepted)
    if accepted < state.needed:
        return state, ()
    return _close(state) if accepted >= state.wanted or answered == len(state.cohort) else (state, ())


def expired(state: RoundState, now: float) -> Step:
    """Close at the deadline when enough are in."""
    if state.closing or state.sum is not None or now < state.deadline or len(state.accepted) < state.needed:
        return state, ()
    return _close(state)


def extended(state: RoundState, added: Iterable[ClientId], deadline: float) -> Step:
    """Ask more nodes, and give everyone more time."""
    new = tuple(canonical(set(added) - set(state.cohort)))
    cohort = tuple(canonical((*state.cohort, *new)))
    state = replace(state, cohort=cohort, deadline=deadline, overdue=True)
    return state, (Persist(RoundExtended(state.number, new)),) if new else ()


def _close(state: RoundState) -> Step:
    late = (Send(node, Refused(state.number, f"round {state.number} has closed without it")) for node in state.missing)
    accepted = state.accepted
    close = Close(state.number, accepted, tuple(state.offers[node] for node in accepted))
    return replace(state, closing=True), (*late, close)


def _objection(state: RoundState, node: ClientId, round: int) -> Send | None:
    """Why a node's update for `round` cannot enter; an accepted one is acknowledged again."""
    outcome = state.outcomes.get(node)
    if round == state.number and outcome == "accepted":
        return Send(node, Accepted(round))
    if round != state.number:
        return Send(node, Refused(round, f"round {round} is not open; the server is at round {state.number}"))
    if node not in state.offers and not state.has(node):
        return Send(node, Refused(round, f"{node} was not asked in round {round}"))
    if outcome is not None:
        return Send(node, Refused(round, f"the part of {node} in round {round} has ended: {outcome}"))
    if state.closing:
        return Send(node, Refused(round, f"round {round} has closed without it"))
    return None
