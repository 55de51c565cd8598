"""The life of one worker, and what is said between it and the process that asks."""

import signal
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection

import msgspec
import torch

from koinon.core import errors
from koinon.core.errors import ClientFailed, KoinonError
from koinon.core.statistics import Statistic
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.chunks import named
from koinon.run.engine import InProcess
from koinon.run.memory import Memory, Parcel, Place
from koinon.run.work import ClientState, Local


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


def written(memory: Memory | Parcel, states: Sequence[ClientState]) -> list[dict[str, Place]]:
    """Write clients' states for a worker; where they are."""
    places = iter(memory.write([tensor for state in states for tensor in state.values()]))
    return [{name: next(places) for name in state} for state in states]


def read(memory: Memory | Parcel, result: Result) -> list[Local | ClientFailed]:
    """What a worker made of a chunk; its bytes stay in the memory."""
    return [_local(memory, made) for made in result.made]


def raised(kind: str, message: str) -> KoinonError:
    """A worker's error, to be raised here."""
    error = getattr(errors, kind, ClientFailed)
    assert issubclass(error, KoinonError)
    return error(message)


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
            vector, slot = model.tensor(asked.model), slots[asked.slot]
            connection.send_bytes(msgspec.msgpack.encode(answer(engine, asked, vector, slot, slot)))
    except (EOFError, OSError):
        return


def answer(engine: InProcess, asked: Asked, model: Vector, states: Memory | Parcel, results: Memory | Parcel) -> Result:
    """Train a chunk.

    Args:
        engine: What trains.
        asked: The chunk.
        model: The global model.
        states: Where the clients' states are.
        results: Where results go; may be where the states are.
    """
    held = [{name: states.tensor(place).clone() for name, place in state.items()} for state in asked.states]
    try:
        made = list(engine.chunk(asked.round, asked.clients, model, held, asked.told, results.room))
    except KoinonError as error:
        return Result(asked.place, [], (type(error).__name__, str(error)))
    except Exception as error:
        said = f"{named(asked.clients)}, round {asked.round}: {type(error).__name__}: {error}; workers=1 shows where"
        return Result(asked.place, [], (ClientFailed.__name__, said))
    return Result(asked.place, _written(results, made))


def _written(memory: Memory | Parcel, made: Sequence[Local | ClientFailed]) -> list[Made | str]:
    locals = [each for each in made if isinstance(each, Local)]
    places = iter(memory.write([item for local in locals for item in (local.encoded, *local.state.values())]))
    return [
        str(each)
        if isinstance(each, ClientFailed)
        else Made(
            next(places), each.weight, each.examples, dict(each.metrics), {name: next(places) for name in each.state}
        )
        for each in made
    ]


def _local(memory: Memory | Parcel, made: Made | str) -> Local | ClientFailed:
    if isinstance(made, str):
        return ClientFailed(made)
    state = {name: memory.tensor(place).clone() for name, place in made.state.items()}
    return Local(memory.bytes(made.encoded), made.weight, made.examples, made.metrics, state)
