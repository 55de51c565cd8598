"""How one model leads to the next: what a node that holds an earlier one is sent in place of the present one."""

from collections.abc import Sequence

from msgspec.structs import replace

from koinon.core.types import ClientId
from koinon.protocol.events import Stream
from koinon.protocol.messages import MOST_DELTAS, Blob, Delta
from koinon.protocol.state import SessionState


def lacking(state: SessionState, node: ClientId) -> tuple[SessionState, tuple[Delta, ...], tuple[Stream, ...]]:
    """What a node lacks of the present model: the deltas from the one that it holds, or the rest of its own bytes."""
    member, model = state.members[node], state.model
    held = member.ready.offset
    if member.ready.model == model.digest:
        return state, (), (Stream(node, model, held),) if held < model.size else ()
    places = [place for place, delta in enumerate(state.deltas) if delta.base == member.ready.model]
    if held != model.size or not places:
        return state, (), (Stream(node, model, 0),)
    deltas = state.deltas[places[-1] :]
    state = replace(state, members={**state.members, node: replace(member, patched=True)})
    return state, deltas, tuple(Stream(node, delta.change, 0) for delta in deltas)


def shown(state: SessionState, node: ClientId, round: int) -> SessionState:
    """A node that offers an update of the open round holds the model that it starts from, if it trained since it came: of an
    update that it brought, the model may be gone."""
    if state.round is None or state.round.number != round:
        return state
    member = state.members[node]
    if member.ready.trained == round:
        return state
    ready = replace(member.ready, model=state.model.digest, offset=state.model.size)
    return replace(state, members={**state.members, node: replace(member, ready=ready)})


def leading(deltas: Sequence[Delta], last: Delta | None, model: Blob) -> tuple[Delta, ...]:
    """As many of the deltas, and `last` after them, as are shorter than the model that they lead to; none without `last`."""
    if last is None:
        return ()
    kept: list[Delta] = []
    room = model.size
    for delta in (last, *reversed(deltas)):
        room -= delta.change.size
        if room <= 0 or len(kept) == MOST_DELTAS:
            break
        kept.append(delta)
    return tuple(reversed(kept))
