"""The server process: sockets on one side, the coordinator on the other."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

from koinon.core.errors import ClientFailed, KoinonError, ProtocolViolation, Unavailable
from koinon.core.types import ClientId
from koinon.durable.failpoint import reach
from koinon.durable.roster import Roster
from koinon.protocol.events import (
    Close,
    Closed,
    Contested,
    Disconnect,
    Event,
    Joined,
    Left,
    Received,
    Send,
    Stopped,
    Stream,
    Tick,
)
from koinon.protocol.messages import Chunk, FromNode, Goodbye, Leave, Ready, Welcome
from koinon.protocol.state import waiting_for
from koinon.run.coordinator import Coordinator, Job, Out, Seal
from koinon.run.outbox import FileChunks, Outbox
from koinon.run.traffic import Traffic
from koinon.view.log import log
from koinon.wire.channel import Applicant
from koinon.wire.connection import HANDSHAKE_S, Connection

TICK_S = 1.0
"""Seconds between the ticks that tell the protocol the time."""

FAREWELL_S = 2.0
"""Seconds in which nodes are told that the server stops."""

RETRY_S = 5.0
"""Seconds before a round is added up again after the disk was full or broken."""


class _Link:
    """A node's connection, and what of its bytes has been counted."""

    def __init__(self, connection: Connection, count: Callable[[int, int], None]) -> None:
        self.connection = connection
        self.outbox = Outbox(connection, self.count)
        self._counted = Traffic()
        self._count = count

    def count(self) -> None:
        """Count what has crossed since the last time."""
        counted, self._counted = self._counted, Traffic(self.connection.bytes_in, self.connection.bytes_out)
        self._count(self._counted.up - counted.up, self._counted.down - counted.down)


class Server:
    """Serves one run until it has ended and its nodes have the final model.

    Args:
        coordinator: The run.
        roster: Who may come in.
        linger_s: Seconds to wait, after the end, for nodes that have not fetched the final model.
    """

    def __init__(self, coordinator: Coordinator, roster: Roster, linger_s: float) -> None:
        self.coordinator = coordinator
        self._roster = roster
        self._linger_s = linger_s
        self._links: dict[ClientId, _Link] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._finished: list[Event] = []
        self._stopping = asyncio.Event()
        self._fault: BaseException | None = None
        self._waiting = ""

    async def handle(self, connection: Connection, applicant: Applicant) -> None:
        """One node's conversation, from its proof to its end."""
        name = await self._admitted(connection, applicant)
        if name is None:
            return
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                ready = await connection.receive()
        except TimeoutError:
            raise ProtocolViolation(f"{name} did not say Ready within {HANDSHAKE_S:g} s") from None
        if isinstance(ready, Leave):
            log("{node} left: {reason}", node=name, reason=ready.reason)
            return
        if not isinstance(ready, Ready):
            raise ProtocolViolation(f"{name} sent {type(ready).__name__} where Ready is due")
        if name in self._links:  # came in while this one was being welcomed
            await connection.send(Goodbye(f"{name} is connected already", final=False))
            return
        link = self._links[name] = _Link(connection, partial(self.coordinator.count, name))
        log("{node} joined", node=name)
        writing = asyncio.create_task(link.outbox.run())
        reading = asyncio.create_task(self._read(name, link, ready))
        try:
            done, _ = await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (writing, reading):
                task.cancel()
            await asyncio.gather(writing, reading, return_exceptions=True)
            del self._links[name]
            self.coordinator.gone(name)
            self._event(Left(name))
            log("{node} left", node=name)

    async def run(self) -> None:
        """Drive the run until it has ended and been handed over, or `stop` is called."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        self._do(self.coordinator.unfinished)
        over_at: float | None = None
        while not self._stopping.is_set():
            self._event(Tick(loop.time()))
            self._cut_revoked()
            self._tell_waiting()
            if self.coordinator.state.status != "running":
                over_at = over_at or loop.time()
                if loop.time() - over_at > self._linger_s:
                    self.stop()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK_S)
        await self._say_goodbye()
        if self._fault is not None:
            raise self._fault
        if self.coordinator.state.status == "aborted":
            raise ClientFailed(f"run {self.coordinator.info.id} was aborted: {self.coordinator.state.reason}")

    def stop(self) -> None:
        """End soon; an unfinished run goes on when the server is started again."""
        self._stopping.set()

    def health(self) -> dict[str, object]:
        """What `/healthz` tells."""
        state = self.coordinator.state
        return {
            "run": self.coordinator.info.id,
            "status": state.status,
            "completed": state.completed,
            "rounds": self.coordinator.info.rounds,
            "nodes": len(self._links),
            "waiting_for": waiting_for(self.coordinator.terms, state),
        }

    def metrics(self) -> str:
        """What `/metrics` tells, in Prometheus' text format."""
        state = self.coordinator.state
        open_round = state.round
        values = {
            ("koinon_rounds_completed", "Rounds closed."): state.completed,
            ("koinon_rounds_planned", "Rounds of the run."): self.coordinator.info.rounds,
            ("koinon_nodes_connected", "Nodes connected now."): len(self._links),
            ("koinon_cohort_size", "Nodes asked in the open round."): len(open_round.cohort) if open_round else 0,
            ("koinon_updates_accepted", "Updates accepted in the open round."): (
                len(open_round.accepted) if open_round else 0
            ),
        }
        return "".join(
            f"# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n" for (name, help), value in values.items()
        )

    async def _admitted(self, connection: Connection, applicant: Applicant) -> ClientId | None:
        """Say Welcome, or Goodbye and why; the name of a node that is in."""
        info = self.coordinator.info
        try:
            name = self._roster.admit(applicant)
            if applicant.definition != info.definition:
                raise ProtocolViolation(
                    f"the node's definition is {applicant.definition[:16]}, the server's is {info.definition[:16]}; "
                    "use the same app file and versions on both"
                )
        except KoinonError as refusal:
            log("a node was refused: {reason}", logging.WARNING, reason=str(refusal))
            self.coordinator.store.note("node refused", key=applicant.key.hex(), reason=str(refusal))
            await connection.send(Goodbye(str(refusal), final=True))
            return None
        if name in self._links:
            reason = f"{name} is connected already; if this is not you, have its identity revoked"
            log("the identity of {node} is used twice", logging.WARNING, node=name)
            self.coordinator.store.note("identity used twice", node=name)
            self._event(Contested(name))
            await connection.send(Goodbye(reason, final=False))
            return None
        await connection.send(Welcome(name, info.id, info.rounds, info.seed))
        return name

    async def _read(self, name: ClientId, link: _Link, ready: Ready) -> None:
        link.count()
        self._event(Joined(name, ready))
        reach("server after join")
        while True:
            message = await link.connection.receive()
            link.count()
            if self._roster.changed():
                self._cut_revoked()
            if name not in self._links:
                return
            if isinstance(message, Chunk):
                self._do(self.coordinator.chunk(name, message))
                reach("server mid upload")
            else:
                self._event(Received(name, _from_node(message)))
            del message  # or every node's last chunk is kept until its next one

    def _event(self, *events: Event) -> None:
        """Take events through the protocol. What cannot be made durable has not happened: the nodes try again."""
        try:
            self._do(self.coordinator.handle(*events))
            self._stop_when_over()
        except Unavailable as error:
            log("not durable, so not done: {reason}", logging.ERROR, reason=str(error))
            for event in events:
                if isinstance(event, Closed):
                    self._start(self._again(event))
                elif node := getattr(event, "node", None):
                    self._put_goodbye(node)

    def _do(self, outs: Sequence[Out]) -> None:
        for out in outs:
            match out:
                case Seal() | Close():
                    self._start(self._job(out))
                case Send() | Stream() | Disconnect():
                    if (link := self._links.get(out.node)) is not None:
                        self._put(link, out)
                case _:
                    assert_never(out)

    def _put(self, link: _Link, out: Send | Stream | Disconnect) -> None:
        match out:
            case Send():
                link.outbox.put(out.message)
            case Disconnect():
                link.outbox.put(Goodbye(out.reason, out.final))
            case Stream():
                path, begin = self.coordinator.file(out.blob)
                link.outbox.put(
                    FileChunks(out.blob.digest, path, begin, out.blob.size, out.offset, "server mid download")
                )

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: "asyncio.Task[None]") -> None:
        """A fault that nobody foresaw ends the server with its words; a round that waits for it would wait forever."""
        self._work.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = fault
            self.stop()

    async def _job(self, job: Job) -> None:
        try:
            event = await asyncio.to_thread(self.coordinator.work, job)
        except (OSError, Unavailable) as error:
            log("{job} failed and is tried again: {reason}", logging.ERROR, job=type(job).__name__, reason=str(error))
            if isinstance(job, Seal):
                self._event(Left(job.node))
                self._put_goodbye(job.node)
            else:
                await asyncio.sleep(RETRY_S)
                self._start(self._job(job))
            return
        except ClientFailed as error:
            self._event(Stopped(str(error)))
            return
        if isinstance(job, Seal):
            reach("server before acknowledgement")
        self._finished.append(event)
        if len(self._finished) == 1:  # what others have finished by the loop's next turn goes into one transaction
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        events, self._finished = self._finished, []
        self._event(*events)

    async def _again(self, event: Event) -> None:
        await asyncio.sleep(RETRY_S)
        self._event(event)

    async def _say_goodbye(self) -> None:
        """Send everyone away, and leave what has not been done to the next start."""
        for task in self._work:
            task.cancel()
        for link in self._links.values():
            link.outbox.put(Goodbye("the server stops", final=self.coordinator.state.status != "running"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while self._links:
                    await asyncio.sleep(0.02)

    def _put_goodbye(self, node: ClientId) -> None:
        if (link := self._links.get(node)) is not None:
            link.outbox.put(Goodbye("the server's disk is full or broken", final=False))

    def _cut_revoked(self) -> None:
        for name, link in self._links.items():
            if not self._roster.allowed(link.connection.peer):
                link.outbox.put(Goodbye("this identity was revoked", final=True))
                self._event(Received(name, Leave("its identity was revoked")))

    def _stop_when_over(self) -> None:
        state = self.coordinator.state
        if state.status != "running" and not waiting_for(self.coordinator.terms, state):
            self.stop()

    def _tell_waiting(self) -> None:
        """Say what has held the run up since the last tick."""
        waiting = waiting_for(self.coordinator.terms, self.coordinator.state)
        self.coordinator.progress.waiting(waiting if waiting == self._waiting else "")
        self._waiting = waiting


def _from_node(message: object) -> FromNode:
    assert isinstance(message, FromNode)  # the channel decodes nothing else
    return message
