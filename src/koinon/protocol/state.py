"""What the server's session knows: the terms it was started with, its members, its rounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from koinon.core.types import ClientId, canonical
from koinon.protocol.messages import Blob, Delta, Ready
from koinon.protocol.round import RoundState
from koinon.secure.hosting import Host

Draw: TypeAlias = Callable[[int, Mapping[ClientId, int]], Sequence[ClientId]]
"""Chooses a round's cohort: a pure function of the round and of the candidates, in canonical order, with the number of
examples that each holds."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the server was started with.

    Attributes:
        rounds: Rounds to close.
        draw: Chooses each round's cohort.
        minimum_nodes: Nodes that must be here for a round to open; >= 1.
        over_selection: Share of the cohort that need not answer: with 0.2, a cohort of 12 closes at 10 updates.
        quorum: Share of the wanted updates without which a round cannot close; in (0, 1].
        deadline_s: Session seconds that a cohort has to answer.
        silence_s: Session seconds without a sign of life after which a node is cut.
        update_bytes: Bytes that an update must have, None when the codec decides.
        least: Updates without which a round cannot be added up; it opens with no fewer nodes, and waits for as many.
        host: Where updates are added up secretly: what that needs. None elsewhere.
        secret_cohort: Where privacy counts on nobody knowing who takes part: how many a cohort has on average, which
            nodes are told in place of the number. A round is then exactly those who were drawn, nobody is asked beyond
            them, and it closes with whoever answered; over-selection and quorum mean nothing. None elsewhere.
    """

    rounds: int
    draw: Draw
    minimum_nodes: int = 1
    over_selection: float = 0.0
    quorum: float = 1.0
    deadline_s: float = 600.0
    silence_s: float = 45.0
    update_bytes: int | None = None
    least: int = 1
    host: Host | None = None
    secret_cohort: int | None = None


class Member(msgspec.Struct, frozen=True):
    """A node that has joined this run at some time.

    Attributes:
        here: Whether it is connected.
        heard: Session time of its last sign of life.
        ready: What it held when it last joined, and has since shown to hold.
        delivered: Whether it holds the final model.
        probed: Session time by which it must show that it is alive, or None.
        patched: Whether it was sent deltas, so that it may say that they do not lead on from what it holds.
    """

    here: bool
    heard: float
    ready: Ready = Ready()
    delivered: bool = False
    probed: float | None = None
    patched: bool = False


class SessionState(msgspec.Struct, frozen=True):
    """A run as the server knows it.

    Attributes:
        model: The model that the next round starts from.
        completed: Closed rounds.
        status: Whether the run goes on.
        round: The round that is open or closing.
        attempt: The how manieth try of the next or open round, from 0, where a secure sum has failed.
        excused: Who failed or declined in an earlier attempt, and is not asked again.
        told: What nodes are told beside the model.
        deltas: What leads to the model from those before, the oldest first; all together shorter than the model.
        members: Every node that joined since the server started and has not left politely.
        now: Session time, seconds.
        world: The world's clock at the last tick, None before the first.
    """

    model: Blob
    completed: int = 0
    status: Literal["running", "finished", "aborted"] = "running"
    reason: str = ""
    round: RoundState | None = None
    attempt: int = 0
    excused: frozenset[ClientId] = frozenset()
    told: Mapping[str, float] = msgspec.field(default_factory=dict)
    deltas: tuple[Delta, ...] = ()
    members: Mapping[ClientId, Member] = msgspec.field(default_factory=dict)
    now: float = 0.0
    world: float | None = None

    @property
    def willing(self) -> list[ClientId]:
        """Those present who can be asked for the next round, in canonical order."""
        return [node for node in self.present if node not in self.excused]

    @property
    def present(self) -> list[ClientId]:
        """Connected nodes, in canonical order."""
        return canonical(node for node, member in self.members.items() if member.here)


def waiting_for(terms: Terms, state: SessionState) -> str:
    """What the run waits for, in one line for a person; empty when it waits for nothing."""
    if state.status != "running":
        away = [node for node, member in state.members.items() if not member.delivered]
        return f"{', '.join(canonical(away))} to fetch the final model" if away else ""
    if state.round is None:
        missing = max(terms.minimum_nodes, terms.least) - len(state.willing)
        if missing > 0:
            return f"{missing} more node{'s' if missing > 1 else ''} to join"
        return (
            "another number of nodes: those who are here cannot be added up secretly" if terms.host is not None else ""
        )
    if state.round.closing:
        return f"round {state.round.number} to be added up"
    if state.round.sum is not None:
        return state.round.sum.waiting_for(state.round.number)
    if not state.round.missing:
        return f"a node that has not been asked for round {state.round.number}; all others failed, declined or left"
    nodes = ", ".join(state.round.missing)
    short = state.round.needed - len(state.round.accepted)
    need = f" (at least {short} of them)" if 0 < short < len(state.round.missing) else ""
    return f"updates for round {state.round.number} from {nodes}{need}"
