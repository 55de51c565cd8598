"""The server's side of a round in groups: clients advertise together, then each group is a secure sum of its own.

Nobody chooses who is with whom: the groups are pieces of the ring that a hash of all advertised keys makes, and each client
computes its own. A group that cannot be opened ends by itself.
"""

from typing import assert_never

import msgspec

from koinon.core.errors import VerificationFailed
from koinon.core.types import ClientId
from koinon.secure import server
from koinon.secure.events import Elapsed, Received, Returned, ServerEffect, ServerEvent, Stored
from koinon.secure.hosting import Host, ServerState

_LAST = ("opened", "aborted")


class HallState(msgspec.Struct, frozen=True):
    """A round in groups.

    Attributes:
        lobby: Until everybody has advertised.
        groups: After that.
    """

    lobby: ServerState
    groups: tuple[ServerState, ...] = ()

    @property
    def rooms(self) -> tuple[ServerState, ...]:
        """The groups, or the lobby as long as there are none."""
        return self.groups or (self.lobby,)

    @property
    def over(self) -> bool:
        """Whether every group is opened or aborted."""
        return all(state.phase in _LAST for state in self.rooms)

    def room(self, client: ClientId) -> int:
        """Which group a client is in; the first for one that is in none."""
        return next((number for number, group in enumerate(self.groups) if client in group.adverts), 0)


Step = tuple[HallState, tuple[ServerEffect, ...]]


def step(host: Host, state: HallState, event: ServerEvent) -> Step:
    """What happens next; `Elapsed` ends the phase of its group or of every one; when all are over, `Open` is wanted again."""
    if not state.groups:
        lobby, effects = server.step(host, state.lobby, event)
        if lobby.phase == "advertise":
            return HallState(lobby), effects
        if lobby.phase != "advertised":
            return HallState(lobby, (lobby,) if lobby.phase != "aborted" else ()), effects
        begun = [server.begun(host, lobby, group) for group in range(len(host.scheme.groups(len(lobby.adverts))))]
        more = tuple(effect for _, effects in begun for effect in effects)
        return HallState(lobby, tuple(group for group, _ in begun)), (*effects, *more)
    groups: list[ServerState] = list(state.groups)
    effects = ()
    for number in _concerned(state, event):
        groups[number], more = server.step(host, groups[number], event)
        effects = (*effects, *more)
    return HallState(state.lobby, tuple(groups)), effects


def dump(state: HallState) -> bytes:
    """A state as bytes."""
    return msgspec.msgpack.encode(state)


def load(data: bytes) -> HallState:
    """The state that `dump` wrote.

    Raises:
        VerificationFailed: if it is damaged.
    """
    try:
        return msgspec.msgpack.decode(data, type=HallState)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise VerificationFailed("the stored state of a secure sum is damaged; its round cannot be finished") from None


def _concerned(state: HallState, event: ServerEvent) -> list[int]:
    """Whose event it is: the client's group, the first for a client that is in none, or every group that is not over."""
    match event:
        case Received(client, _) | Stored(client, _) | Returned(client):
            return [state.room(client)]
        case Elapsed(group) if group is not None:
            return [group]
        case Elapsed():
            waiting = [number for number, group in enumerate(state.groups) if group.phase not in _LAST]
            return waiting or list(range(len(state.groups)))
        case _:
            assert_never(event)
