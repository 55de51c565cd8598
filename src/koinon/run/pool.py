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

import msgspec

from koinon.core.errors import AdmissionError, ClientFailed, Unavailable
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.chunks import Chunk, chunks
from koinon.run.memory import Memory, Place
from koinon.run.schedule import Schedule, room
from koinon.run.work import ClientState, Local
from koinon.run.worker import Asked, Result, raised, read, serve, written
from koinon.update.stage import Told

ATTEMPTS = 2
"""Workers that may die of a chunk before it is given up."""


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
        self._slots = [Memory() for _ in range(room(federation, workers))]
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
        self._free = list(range(len(pool._slots)))
        self._slot: dict[int, int] = {}
        self._done: dict[int, Result] = {}
        self._schedule = Schedule(chunks, pool._workers, len(pool._slots), ATTEMPTS)

    def results(self) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """Every client's, in canonical order."""
        for place, chunk in enumerate(self._chunks):
            while place not in self._done:
                while (asked := self._schedule.next()) is not None:
                    self._send(*asked)
                self._listen()
            yield from zip(chunk.clients, read(self._slots[self._slot[place]], self._done.pop(place)), strict=True)
            self._free.append(self._slot.pop(place))
            self._schedule.taken()

    def _send(self, connection: Connection, place: int) -> None:
        clients = self._chunks[place].clients
        if place not in self._slot:
            self._slot[place] = self._free.pop()
        slot = self._slot[place]
        names = written(self._slots[slot], [self._states[client] for client in clients])
        asked = Asked(self._number, place, slot, clients, self._model, names, self._told)
        try:
            connection.send_bytes(msgspec.msgpack.encode(asked))
        except OSError:
            self._died(connection)

    def _listen(self) -> None:
        """Take what workers have to say; wait until there is something."""
        for ready in wait(list(self._schedule.asked)):
            connection = ready
            assert isinstance(connection, Connection)
            if connection not in self._schedule.asked:
                continue
            try:
                result = msgspec.msgpack.decode(connection.recv_bytes(), type=Result)
            except (OSError, EOFError):
                self._died(connection)
                continue
            if result.error is not None:
                raise raised(*result.error)
            self._schedule.done(connection, result.place)
            self._done[result.place] = result

    def _died(self, connection: Connection) -> None:
        """Others do what a dead worker was asked for."""
        chunk, given_up = self._schedule.lost(connection)
        process = self._workers.pop(connection)
        connection.close()
        process.join()
        if chunk is not None and (given_up or not self._workers):
            raise Unavailable(f"{_ending(process)} while it trained {chunk.names} {self._advice}")
        if not self._workers:
            raise Unavailable(f"{_ending(process)}, and there is no other {self._advice}")

    @property
    def _advice(self) -> str:
        return f"in round {self._number}; workers=1 shows a fault in this process, and needs less memory"


def _ending(process: ForkProcess) -> str:
    code = process.exitcode or 0
    return f"a worker was killed by signal {-code}" if code < 0 else f"a worker ended with code {code}"
