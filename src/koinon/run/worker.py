"""The life of one worker process, and what is said between it and the process that asks."""

import signal
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection

import msgspec
import torch

from koinon.core.errors import ClientFailed, KoinonError
from koinon.core.statistics import Statistic
from koinon.core.types import ClientId
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.engine import InProcess
from koinon.run.memory import Memory, Place
from koinon.run.work import Local


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """Train a chunk.

    Attributes:
        round: Round number.
        place: The chunk's place in the cohort.
        slot: Number of the memory where the clients' states are, and where results go.
        clients: Who is in the chunk.
        model: The global model, in the memory of the model.
        states: Each client's state.
        told: What the server tells the stages.
    """

    round: int
    place: int
    slot: int
    clients: tuple[ClientId, ...]
    model: Place
    states: list[dict[str, Place]]
    told: Mapping[str, float]


class Made(msgspec.Struct, frozen=True, tag="made", array_like=True):
    """A `Local`, its bytes and tensors in the slot's memory."""

    encoded: Place
    weight: float
    examples: int
    metrics: dict[str, Statistic]
    state: dict[str, Place]


class Result(msgspec.Struct, frozen=True, array_like=True):
    """What a chunk came to.

    Attributes:
        place: The chunk's.
        made: What each client made, or why it failed.
        error: Kind and message of an error that ends the run.
    """

    place: int
    made: list[Made | str]
    error: tuple[str, str] | None = None


def serve(
    connection: Connection,
    others: Sequence[Connection],
    model: Memory,
    slots: Sequence[Memory],
    federation: Federation,
    population: Population,
    seed: int,
) -> None:
    """Train what is asked for until whoever asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that asks ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    engine = InProcess(federation, population, seed)
    try:
        while True:
            asked = msgspec.msgpack.decode(connection.recv_bytes(), type=Asked)
            connection.send_bytes(msgspec.msgpack.encode(_result(engine, asked, model, slots[asked.slot])))
    except (EOFError, OSError):
        return


def _result(engine: InProcess, asked: Asked, model: Memory, slot: Memory) -> Result:
    states = [{name: slot.tensor(place).clone() for name, place in state.items()} for state in asked.states]
    vector = model.tensor(asked.model)
    try:
        made = list(engine.chunk(asked.round, asked.clients, vector, states, asked.told, slot.room))
    except KoinonError as error:
        return Result(asked.place, [], (type(error).__name__, str(error)))
    except Exception as error:
        who = (
            f"one of the clients {', '.join(asked.clients)}" if len(asked.clients) > 1 else f"client {asked.clients[0]}"
        )
        said = f"{who}, round {asked.round}: {type(error).__name__}: {error}; workers=1 shows where"
        return Result(asked.place, [], (ClientFailed.__name__, said))
    return Result(asked.place, _written(slot, made))


def _written(slot: Memory, made: Sequence[Local | ClientFailed]) -> list[Made | str]:
    locals = [each for each in made if isinstance(each, Local)]
    places = iter(slot.write([item for local in locals for item in (local.encoded, *local.state.values())]))
    return [
        str(each)
        if isinstance(each, ClientFailed)
        else Made(
            next(places), each.weight, each.examples, dict(each.metrics), {name: next(places) for name in each.state}
        )
        for each in made
    ]
