"""The two pieces of work of a round: what a client does and what the server does. Every runtime calls these."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from koinon.aggregate.bounded import Bounded
from koinon.aggregate.reducer import Contextual, Deciding, Round, Rows, Watching, reduced
from koinon.core.errors import ClientFailed
from koinon.core.noise import Noise
from koinon.core.rng import Later, generator
from koinon.core.statistics import Metrics
from koinon.core.types import ClientId, Cohort, Update, Vector, finite
from koinon.data.dataset import DataSet
from koinon.durable.checkpoint import ServerState
from koinon.evaluate.evaluation import on_client
from koinon.federation import Federation
from koinon.learn.corrections import Correction
from koinon.learn.learner import LocalTask
from koinon.update.codec import Codec, Encoded, Float32, InMemory, Shared, floats_as_bytes
from koinon.update.fitted import Link, fitted
from koinon.update.stage import Context, State, Told

ClientState = Mapping[str, torch.Tensor]

CODEC = "codec."
"""Prefix of what a client's codec remembers, beside its stages, whose names begin with their places."""

LOCAL = "local."
"""Prefix of what a client's correction remembers."""

LEARNER = "learner."
"""Prefix of what a client's learner keeps."""

OF_A_ROUND = (CODEC, LOCAL, LEARNER)
"""Prefixes of what goes back to what it was if the server refuses the round's update."""

_LINK = "link"
"""Name of what a client knows of its link: bytes in a second, and the seconds of a round trip."""

BLOCK = 1 << 20
"""Elements of a model that are changed at a time."""


@dataclass(frozen=True)
class Local:
    """What a client made in a round.

    Attributes:
        encoded: The update's bytes.
        weight: Its weight in the mean.
        examples: Examples it was trained on.
        metrics: Statistics of training, prefixed `train_`, and of the received model on held-out data.
        state: The client's state after the round.
    """

    encoded: bytes | memoryview
    weight: float
    examples: int
    metrics: Metrics
    state: ClientState


def linked(state: ClientState, link: Link | None) -> ClientState:
    """A client's state with what it knows of its link, for `train`; it is of this round alone."""
    if link is None:
        return state
    return {**state, _LINK: torch.tensor([link.bytes_per_s, link.round_trip_s], dtype=torch.float64)}


def shared(federation: Federation, seed: int, round: int) -> Shared:
    """What a round's clients and its server know alike of what travels."""
    return Shared(federation.travelling, seed, round)


def first_state(federation: Federation, seed: int) -> ServerState:
    """The server's state before round 1."""
    learner, strategy = federation.learner, federation.strategy
    reducer = strategy.reducer
    return ServerState(
        learner.initial(seed),
        strategy.server.init(learner.layout.length),
        strategy.stages.init(learner.layout),
        reducer=reducer.start(federation.carried) if isinstance(reducer, Contextual) else {},
    )


def draw(
    federation: Federation,
    seed: int,
    noise: Noise,
    round: int,
    candidates: Sequence[ClientId],
    sizes: Mapping[ClientId, int],
) -> list[ClientId]:
    """A round's cohort: a pure function of the arguments.

    Everyone knows the seed. Where noise counts on nobody knowing who takes part, the draw follows from its secret.

    Args:
        noise: The server's, of the whole run.
        candidates: Who could take part, in canonical order.
        sizes: How many examples each of them holds.
    """
    secret = noise.of("sample", round).generator() if federation.protections else generator(seed, "sample", round)
    return federation.strategy.sample.sample(candidates, round, secret, sizes)


def train(
    federation: Federation,
    seed: int,
    noise: Noise,
    round: int,
    client: ClientId,
    model: Vector,
    data: DataSet,
    state: ClientState,
    told: Told,
) -> Local:
    """Evaluate the received model, train it, and take the update through the stages to bytes.

    With noise, nothing is told beside the update.

    Args:
        noise: The client's own, of the whole run.
        state: The client's after its last round: its stages', and behind `codec.`, `local.` and `learner.` its codec's, its
            correction's and its learner's. What is missing begins. By `linked`, what it knows of its link.
        told: What the server told its stages for this round.

    Raises:
        ClientFailed: if training fails or anything that would be sent is not finite.
    """
    learner = federation.learner
    metrics = on_client(learner, model, data, kept(state)) if federation.evaluation.federated else {}
    rng = generator(seed, "train", round, client)
    update = learner.train(model, data.train, task_of(federation, noise, round, client, state), rng)
    return packed(federation, seed, noise, round, client, update, metrics, state, told)


def task_of(federation: Federation, noise: Noise, round: int, client: ClientId, state: ClientState) -> LocalTask:
    """What a round asks of a client's training; `noise` is the client's own, of the whole run."""
    correction = _begun(federation, _of(LOCAL, state))[1]
    return LocalTask(round, correction, noise.of("train", round, client), kept(state))


def kept(state: ClientState) -> State:
    """What a client's learner keeps, of all that the client does."""
    return _of(LEARNER, state)


def packed(
    federation: Federation,
    seed: int,
    noise: Noise,
    round: int,
    client: ClientId,
    update: Update,
    metrics: Metrics,
    state: ClientState,
    told: Told,
) -> Local:
    """Take a trained update through the stages to bytes; the arguments are those of `train`.

    Args:
        metrics: Of the received model on the client's held-out data.

    Raises:
        ClientFailed: if anything that would be sent is not finite.
    """
    learner, strategy = federation.learner, federation.strategy
    local: State = {}
    if strategy.remembering is not None:
        local = strategy.remembering.end(_begun(federation, _of(LOCAL, state))[0], update.delta)
    context = Context(
        round,
        strategy.before,
        learner.layout,
        Later(seed, "stages", round, client),
        noise.of("stages", client=client),
        told,
    )
    memory = _of(CODEC, state)
    stages: State = {name: state[name] for name in state if name != _LINK and not name.startswith(OF_A_ROUND)}
    stages, update = strategy.stages.on_client(stages or strategy.stages.init(learner.layout), update, context)
    if not (finite(update.delta) and finite(update.weight)):
        raise ClientFailed(f"the update of round {round} is not finite; lower the learning rate or clip it")
    known = shared(federation, seed, round)
    if isinstance(strategy.codec, Float32):  # it draws nothing, remembers nothing, and is the same on every link
        encoded: bytes | memoryview = floats_as_bytes(update.delta)
    else:
        codec = fitted(strategy.codec, Link(*state[_LINK].tolist()) if _LINK in state else None)
        rng = generator(seed, "codec", round, client)
        memory, encoded = codec.encode(memory or codec.init(known.layout), update.delta, known, rng)
    state = {**stages, **_under(CODEC, memory), **_under(LOCAL, local), **_under(LEARNER, update.memory)}
    if federation.protections:
        return Local(encoded, float(update.weight), 1, {}, state)
    return Local(encoded, float(update.weight), int(update.examples), {**metrics, **update.metrics}, state)


def _begun(federation: Federation, memory: State) -> tuple[State, Correction | None]:
    """What a client remembers for its local training, begun if it is empty, and this round's correction."""
    strategy, layout = federation.strategy, federation.learner.layout
    if strategy.remembering is not None:
        memory = memory or strategy.remembering.init(layout)
        return memory, strategy.remembering.begin(memory, layout)
    return {}, cast(Correction | None, strategy.correction)  # to ask what it is takes as long as all else here


def _of(prefix: str, state: ClientState) -> State:
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


def _under(prefix: str, memory: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in memory.items()}


def aggregated(
    federation: Federation, seed: int, round: int, state: ServerState, clients: Sequence[ClientId], rows: Rows
) -> tuple[ServerState, Vector]:
    """A round's updates as one, and the server's state with what the rule then remembers.

    Args:
        clients: Whose update each row is, in canonical order. Nobody's come to zeros.

    Raises:
        ClientFailed: if there are too few for the rule.
    """
    if not clients:
        return state, torch.zeros(rows.length)
    reducer = federation.strategy.reducer
    own = _own_update(federation, seed, round, state.model)
    known = Round(round, tuple(clients), generator(seed, "aggregate", round), own)
    try:
        memory, total = reduced(reducer, state.reducer, rows, known)
    except ValueError as error:
        raise ClientFailed(f"round {round} cannot be added up: {error}") from error
    return replace(state, reducer=memory), total


def suspicion(
    federation: Federation, state: ServerState, clients: Sequence[ClientId]
) -> dict[ClientId, Mapping[str, float]]:
    """What the rule knows of these clients after the round, where it watches for liars."""
    reducer = federation.strategy.reducer
    if not isinstance(reducer, Watching):
        return {}
    report = reducer.report(state.reducer)
    return {client: report[client] for client in clients if client in report}


def decision(federation: Federation, state: ServerState) -> str:
    """What the rule did in the round and why, where it decides anew in every one."""
    reducer = federation.strategy.reducer
    return reducer.note(state.reducer) if isinstance(reducer, Deciding) else ""


def _own_update(federation: Federation, seed: int, round: int, model: Vector) -> Vector | None:
    """What the server makes of the data that the rule trusts, trained as a client trains; None where it trusts none."""
    root = getattr(federation.strategy.reducer, "root", None)
    if root is None:
        return None
    data = DataSet.of(root() if callable(root) else root).train
    task = LocalTask(round, _begun(federation, {})[1])
    return federation.learner.train(model, data, task, generator(seed, "root", round)).delta


def advance(
    federation: Federation,
    seed: int,
    noise: Noise,
    round: int,
    state: ServerState,
    total: Vector,
    weights: Sequence[float],
) -> tuple[ServerState, bytes | memoryview | None]:
    """The server's state after a round whose updates, of such weights, were reduced to `total`.

    Takes `state` and `total` over. With noise, a round in which nobody took part must come here as well, with a
    `total` of zeros: that nobody did is not told either.

    Returns:
        The state and, where the way down has a codec, what leads to its model from the one before.
    """
    strategy, layout = federation.strategy, federation.learner.layout
    before = state.model.clone() if strategy.downlink is not None else state.model
    cohort = Cohort(round, len(weights), sum(weights))
    context = Context(round, strategy.before, layout, Later(seed, "server", round), noise.of("server"))
    stages, total = strategy.stages.on_server(state.stages, total, cohort, context)
    optimizer, model = strategy.server.step(state.optimizer, state.model, total)
    state = replace(state, model=model, optimizer=optimizer, stages=stages)
    if strategy.downlink is None:
        return state, None
    known = Shared(layout, seed, round)
    memory, change = strategy.downlink.encode(
        state.downlink or strategy.downlink.init(layout), model - before, known, generator(seed, "downlink", round)
    )
    return replace(state, model=changed(federation, seed, round, before, change), downlink=memory), change


def changed(
    federation: Federation, seed: int, round: int, model: Vector, change: bytes | bytearray | memoryview
) -> Vector:
    """The model after a round, from the one before, which is taken over: the same bits on the server and on every node.

    Raises:
        ValueError: if the change is no encoding of a vector of the model's layout, or there is no codec of the way down.
    """
    codec = federation.strategy.downlink
    if codec is None:
        raise ValueError("nothing is encoded on the way down")
    known, encoded = Shared(federation.learner.layout, seed, round), InMemory(memoryview(change))
    for start in range(0, known.length, BLOCK):
        stop = min(start + BLOCK, known.length)
        model[start:stop] += codec.decode(encoded, known, start, stop)
    return model


def held(federation: Federation, rows: Rows) -> Rows:
    """The rows as their clients promised them, where noise or a count relies on it."""
    promised = federation.strategy.promised
    return Bounded(rows, promised) if promised.central_noise or promised.tally is not None else rows


@dataclass(frozen=True)
class EncodedRows:
    """A round's updates as they came over the wire, decoded block by block."""

    codec: Codec
    encoded: Sequence[Encoded]
    weights: Sequence[float]
    shared: Shared

    @property
    def length(self) -> int:
        """D, the number of columns."""
        return self.shared.length

    def columns(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Columns `start .. stop` of each row in turn."""
        return (self.codec.decode(encoded, self.shared, start, stop) for encoded in self.encoded)
