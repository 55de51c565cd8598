"""Worker processes that train simulated clients: forked once, used for every round, one torch thread each.

A fork inherits the federation and the population as they are: whatever an app file defines works, nothing is
serialised, and the clients' data is shared with this process until someone writes to it. What passes between the
processes afterwards is a few numbers over a pipe, and tensors in shared memory.
"""

import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import TypeAlias

import msgspec

from koinon.core import errors
from koinon.core.errors import AdmissionError, ClientFailed, KoinonError, Unavailable
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.chunks import Chunk, chunk_size, chunks, costliest
from koinon.run.memory import Memory, Place
from koinon.run.work import ClientState, Local
from koinon.run.worker import Asked, Made, Result, serve
from koinon.update.stage import Told

HELD_BYTES = 64 << 20
"""Results that may wait for their turn to be added up. The order of adding is canonical, that of training is not:
with room for a whole round the costliest clients begin first, and the workers end together."""

HELD_CHUNKS = 32
"""Chunks that may wait, however small; each needs a file descriptor."""

AHEAD = 2
"""Chunks that a worker is asked for at a time, so that it never waits for this process."""

ATTEMPTS = 2
"""Workers that may die of a chunk before it is given up."""

Results: TypeAlias = list[tuple[ClientId, Local | ClientFailed]]


class Pool:
    """An engine on several processes; gives the bits of `InProcess`.

    Make it before this process starts threads: a thread does not survive a fork, but what it has locked stays locked.

    Args:
        federation: What is trained.
        population: The clients.
        seed: Of everything that is drawn.
        workers: How many processes, >= 1.

    Raises:
        AdmissionError: if this platform cannot fork.
    """

    def __init__(self, federation: Federation, population: Population, seed: int, workers: int) -> None:
        if sys.platform != "linux":
            raise AdmissionError("worker processes need Linux, where a process can fork safely; use workers=1 here")
        context = multiprocessing.get_context("fork")
        self._population = population
        self._model = Memory(4 * federation.learner.layout.length)
        self._length = federation.learner.layout.length
        chunk = chunk_size(1 << 30, self._length) * federation.strategy.codec.most(federation.travelling)
        self._slots = [Memory() for _ in range(AHEAD * workers + min(HELD_CHUNKS, HELD_BYTES // chunk))]
        pipes = [context.Pipe() for _ in range(workers)]
        self._workers: dict[Connection, ForkProcess] = {}
        for here, there in pipes:
            others = [
                end for pipe in pipes for end in pipe if end is not there
            ]  # else nobody would see this process end
            arguments = (there, others, self._model, self._slots, federation, population, seed)
            process = context.Process(target=serve, args=arguments, daemon=True, name="koinon-worker")
            process.start()
            self._workers[here] = process
        for _, there in pipes:
            there.close()

    def train(
        self, round: int, cohort: Sequence[ClientId], model: Vector, states: Mapping[ClientId, ClientState], told: Told
    ) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """As `Engine.train`; what is yielded lies in shared memory, and is valid until the next is asked for.

        Raises:
            Unavailable: if a worker died of a chunk, and another as well.
            KoinonError: if a client's data cannot be made.
        """
        (place,) = self._model.write([model])
        yield from _Round(self, round, chunks(cohort, self._length, self._population), place, states, told).results()

    def close(self) -> None:
        """End the processes."""
        for connection, process in self._workers.items():
            connection.close()
            process.terminate()
        for process in self._workers.values():
            process.join()
        self._workers = {}


class _Round:
    """A round's chunks on their way through the workers."""

    def __init__(
        self,
        pool: Pool,
        number: int,
        chunks: Sequence[Chunk],
        model: Place,
        states: Mapping[ClientId, ClientState],
        told: Told,
    ) -> None:
        self._number = number
        self._chunks = chunks
        self._model = model
        self._states = states
        self._told = told
        self._workers = pool._workers
        self._slots = pool._slots
        self._free = list(range(min(len(pool._slots), len(chunks))))
        self._asked: dict[Connection, list[int]] = {connection: [] for connection in pool._workers}
        self._slot: dict[int, int] = {}
        self._done: dict[int, Result] = {}
        self._deaths = [0] * len(chunks)
        self._waiting: list[int] = []  # chunks with a slot that nobody was asked for yet

    def results(self) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """Every client's, in canonical order."""
        begun = 0
        for place in range(len(self._chunks)):
            while place not in self._done:
                while self._free and begun < len(self._chunks):
                    self._slot[begun] = self._free.pop()
                    self._waiting.append(begun)
                    begun += 1
                self._ask()
                self._listen()
            yield from self._read(place)
            self._free.append(self._slot.pop(place))

    def _ask(self) -> None:
        """Give every worker something to do, the costliest chunk first."""
        while self._waiting:
            connection = min(self._asked, key=lambda each: len(self._asked[each]))
            if len(self._asked[connection]) >= AHEAD:
                return
            place = costliest(self._chunks, self._waiting)
            self._waiting.remove(place)
            self._asked[connection].append(place)
            self._send(connection, place)

    def _send(self, connection: Connection, place: int) -> None:
        clients = self._chunks[place].clients
        states = [self._states[client] for client in clients]
        tensors = [tensor for state in states for tensor in state.values()]
        places = iter(self._slots[self._slot[place]].write(tensors))
        names = [{name: next(places) for name in state} for state in states]
        asked = Asked(self._number, place, self._slot[place], clients, self._model, names, self._told)
        try:
            connection.send_bytes(msgspec.msgpack.encode(asked))
        except OSError:
            self._died(connection)

    def _listen(self) -> None:
        """Take what workers have to say; wait until there is something."""
        for ready in wait(list(self._asked)):
            connection = ready
            assert isinstance(connection, Connection)
            if connection not in self._asked:
                continue
            try:
                result = msgspec.msgpack.decode(connection.recv_bytes(), type=Result)
            except (OSError, EOFError):
                self._died(connection)
                continue
            if result.error is not None:
                raise _error(*result.error)
            self._asked[connection].remove(result.place)
            self._done[result.place] = result

    def _died(self, connection: Connection) -> None:
        """Others do what a dead worker was asked for; the first of it is what it died of."""
        lost = self._asked.pop(connection)
        process = self._workers.pop(connection)
        connection.close()
        process.join()
        self._waiting += lost
        for place in lost[:1]:
            self._deaths[place] += 1
            if self._deaths[place] >= ATTEMPTS or not self._asked:
                raise Unavailable(f"{_ending(process)} while it trained {_names(self._chunks[place])} {self._advice}")
        if not self._asked:
            raise Unavailable(f"{_ending(process)}, and there is no other {self._advice}")

    @property
    def _advice(self) -> str:
        return f"in round {self._number}; workers=1 shows a fault in this process, and needs less memory"

    def _read(self, place: int) -> Results:
        memory = self._slots[self._slot[place]]
        clients = self._chunks[place].clients
        return [
            (client, _local(memory, made)) for client, made in zip(clients, self._done.pop(place).made, strict=True)
        ]


def _local(memory: Memory, made: Made | str) -> Local | ClientFailed:
    if isinstance(made, str):
        return ClientFailed(made)
    state = {name: memory.tensor(place).clone() for name, place in made.state.items()}
    return Local(memory.bytes(made.encoded), made.weight, made.examples, made.metrics, state)


def _error(kind: str, message: str) -> KoinonError:
    raised = getattr(errors, kind, ClientFailed)
    assert issubclass(raised, KoinonError)
    return raised(message)


def _ending(process: ForkProcess) -> str:
    code = process.exitcode or 0
    return f"a worker was killed by signal {-code}" if code < 0 else f"a worker ended with code {code}"


def _names(chunk: Chunk) -> str:
    many = len(chunk.clients) > 1
    return f"one of the clients {', '.join(chunk.clients)}" if many else f"client {chunk.clients[0]}"
