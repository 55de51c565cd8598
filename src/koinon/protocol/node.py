"""A node's side of a run, as a pure state machine.

Rules:
    - an update is in the journal, durable, before the server hears of it, and one round is trained once: the same
      bytes are offered again after any cut or crash, never a second draw;
    - a server that asks twice for one round with different models is told so and gets nothing;
    - what the server refuses is dropped, and what its codec left out before is taken back first; what it acknowledges is
      forgotten only then, or when it is at a later round;
    - training goes on while the connection is down;
    - where updates are added up secretly, what was trained is masked, anew for every attempt, and only that ever leaves, whatever
      the server asks for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, assert_never

from koinon.core.statistics import Metrics
from koinon.protocol.messages import (
    Accepted,
    Blob,
    Chunk,
    Continue,
    Declined,
    Delivered,
    Delta,
    Failed,
    Finished,
    FromNode,
    FromServer,
    Goodbye,
    Heartbeat,
    Offer,
    Probe,
    Ready,
    Refused,
    Summing,
    Task,
    Welcome,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A round in the node's journal.

    Attributes:
        model: Digest of the model it was trained from.
        offer: What was made of it; None once the server has acknowledged or refused it.
    """

    model: str
    offer: Offer | None


@dataclass(frozen=True, slots=True)
class Connected:
    """The server let the node in, or told of a model what does not lead on from what is here.

    `model` and `offset` say what is on the node's disk, `examples` what it trains on.
    """

    model: str | None
    offset: int
    examples: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message other than a chunk came from the server."""

    message: FromServer


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A model is complete on the node's disk and has its digest."""

    model: str


@dataclass(frozen=True, slots=True)
class Trained:
    """Training ended and the update's bytes are durable."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Masked:
    """What was trained is masked, and the masked bytes are durable."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Training failed, or the owner's policy forbids it."""

    answer: Declined | Failed


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The final model was evaluated."""

    model: str
    metrics: Metrics


Event: TypeAlias = Connected | Lost | Received | Downloaded | Trained | Masked | GaveUp | Evaluated


@dataclass(frozen=True, slots=True)
class Say:
    """Send a message, if connected."""

    message: FromNode


@dataclass(frozen=True, slots=True)
class Download:
    """Collect this model's chunks, or those of the deltas that lead to it.

    Answer by `Downloaded`, at once if it is already there, or by `Connected` if the deltas do not lead to it.
    """

    model: Blob
    deltas: tuple[Delta, ...] = ()


@dataclass(frozen=True, slots=True)
class Train:
    """Train this task from its model; answer by `Trained` or `GaveUp`."""

    task: Task


@dataclass(frozen=True, slots=True)
class TakePart:
    """Take part in this attempt to add up the round's updates secretly; asked again, say the same again."""

    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Hear:
    """The server said something in the secure sum's own words."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Contribute:
    """Mask this update as soon as the secure sum wants it; answer by `Masked`."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Remember:
    """Write an entry into the journal, durable before the next effect."""

    round: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class TakeBack:
    """The server refused a round's update: what the codec remembers is again what it was before that round."""

    round: int


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the offered update's bytes from `offset` on."""

    offer: Offer
    offset: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the final model; answer by `Evaluated`."""

    model: Blob


@dataclass(frozen=True, slots=True)
class Quit:
    """The server needs this node no more, or will never have it; `finished`: the final model is here."""

    reason: str
    finished: bool


Effect: TypeAlias = (
    Say | Download | Train | TakePart | Hear | Contribute | Remember | TakeBack | Upload | Evaluate | Quit
)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A run as a node knows it.

    Attributes:
        journal: Rounds it has trained.
        answer: What it said of the last round that it declined or failed.
        task: What it is working on.
        training: Whether training of `task` has begun.
        secret: Whether updates leave only masked, by the definition on the node's own disk.
        masked: What was offered of the last round that was added up secretly.
        final: The final model, once the server has announced it.
        finished: Whether the final model is here and evaluated.
    """

    journal: Mapping[int, Entry] = field(default_factory=dict)
    answer: Declined | Failed | None = None
    task: Task | None = None
    training: bool = False
    secret: bool = False
    masked: Offer | None = None
    final: Blob | None = None
    finished: bool = False


Step: TypeAlias = tuple[NodeState, tuple[Effect, ...]]


def step(state: NodeState, event: Event) -> Step:
    """The next state and what is to be done, in order."""
    match event:
        case Connected():
            owed = [number for number, entry in state.journal.items() if entry.offer is not None]
            return state, (Say(Ready(event.model, event.offset, max(owed, default=0), event.examples)),)
        case Lost():
            return state, ()
        case Received():
            return _received(state, event.message)
        case Downloaded():
            return _downloaded(state, event.model)
        case Trained():
            return _trained(state, event.offer)
        case Masked():
            return replace(state, masked=event.offer), (Say(event.offer),)
        case GaveUp():
            return replace(_without_task(state, event.answer.round), answer=event.answer), (Say(event.answer),)
        case Evaluated():
            if state.final is None or state.final.digest != event.model:
                return state, ()
            return replace(state, finished=True), (Say(Delivered(event.model, dict(event.metrics))),)
        case _:
            assert_never(event)


def _received(state: NodeState, message: FromServer) -> Step:
    match message:
        case Task():
            state, forgotten = _outlived(state, message.round)
            state, effects = _asked(state, message)
            return state, (*forgotten, *effects)
        case Continue():
            entry = state.journal.get(message.round)
            offer = entry.offer if entry is not None else None
            if state.secret and offer is not None:
                offer = state.masked if state.masked is not None and state.masked.round == message.round else None
            return state, () if offer is None else (Upload(offer, message.offset),)
        case Summing():
            return state, (Hear(message.message),)
        case Accepted():
            return _ended(state, message.round)
        case Refused():
            state, ended = _ended(state, message.round)
            return state, (TakeBack(message.round), *ended) if ended else ()
        case Finished():
            state, forgotten = _outlived(state, message.round + 1)
            state = replace(state, final=message.model, task=None, training=False)
            return state, (*forgotten, Download(message.model, message.deltas))
        case Goodbye():
            return state, (Quit(message.reason, state.finished),) if message.final else ()
        case Probe():
            return state, (Say(Heartbeat()),)
        case Welcome() | Chunk() | Heartbeat():
            return state, ()
        case _:
            assert_never(message)


def _asked(state: NodeState, task: Task) -> Step:
    if state.secret is (task.attempt is None):
        reason = "asks for an update in clear" if state.secret else "adds up secretly, and nothing is defined to be"
        answer = Declined(task.round, f"this server {reason}; the node's definition says otherwise")
        return replace(_without_task(state, task.round), answer=answer), (Say(answer),)
    if state.answer is not None and state.answer.round == task.round:
        return state, (Say(state.answer),)
    entry = state.journal.get(task.round)
    part = () if task.attempt is None else (TakePart(task.round, task.attempt),)
    if entry is None:
        download = Download(task.model, task.deltas)
        if state.task is not None and state.task.round == task.round and state.task.model == task.model:
            return replace(state, task=task), part if state.training else (*part, download)
        return replace(state, task=task, training=False), (*part, download)
    if entry.model != task.model.digest:
        return state, (Say(Failed(task.round, f"round {task.round} was asked before, from another model")),)
    if entry.offer is None:
        return state, (Say(Failed(task.round, f"round {task.round} was delivered before")),)
    return state, (*part, _handed_in(entry.offer, task))


def _handed_in(offer: Offer, task: Task) -> Effect:
    return Say(offer) if task.attempt is None else Contribute(offer)


def _outlived(state: NodeState, round: int) -> Step:
    """Forget what was offered in rounds before this one: rounds never go back, so nobody will ask for it."""
    ended = {
        number: replace(entry, offer=None)
        for number, entry in state.journal.items()
        if number < round and entry.offer is not None
    }
    effects = tuple(Remember(number, entry) for number, entry in ended.items())
    return replace(state, journal={**state.journal, **ended}), effects


def _downloaded(state: NodeState, model: str) -> Step:
    if state.final is not None and state.final.digest == model:
        return state, (Evaluate(state.final),)
    if state.task is None or state.training or state.task.model.digest != model:
        return state, ()
    return replace(state, training=True), (Train(state.task),)


def _trained(state: NodeState, offer: Offer) -> Step:
    if state.task is None or state.task.round != offer.round:
        return state, ()
    entry = Entry(state.task.model.digest, offer)
    journal = {**state.journal, offer.round: entry}
    effects = Remember(offer.round, entry), _handed_in(offer, state.task)
    return replace(_without_task(state, offer.round), journal=journal), effects


def _ended(state: NodeState, round: int) -> Step:
    state = _without_task(state, round)
    entry = state.journal.get(round)
    if entry is None or entry.offer is None:
        return state, ()
    entry = replace(entry, offer=None)
    return replace(state, journal={**state.journal, round: entry}), (Remember(round, entry),)


def _without_task(state: NodeState, round: int) -> NodeState:
    if state.task is None or state.task.round != round:
        return state
    return replace(state, task=None, training=False)
