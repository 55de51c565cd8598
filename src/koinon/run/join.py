"""The node process: a socket on one side, the participant on the other."""

import asyncio
import logging
import math
import secrets
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from koinon.attack.attack import Attack
from koinon.core.errors import PolicyRefused, ProtocolViolation, Unavailable
from koinon.data.dataset import DataSet
from koinon.durable.failpoint import reach
from koinon.durable.journal import Journal
from koinon.federation import Federation
from koinon.protocol.messages import Accepted, Chunk, FromServer, Goodbye, Heartbeat, Leave, Offer, Refused, Welcome
from koinon.protocol.node import Evaluate, Event, Lost, Quit, Received, Say, Train, Upload
from koinon.run.outbox import FAREWELL_S, FileChunks, Outbox
from koinon.run.participant import Job, Out, Participant
from koinon.run.policy import Policy
from koinon.run.seat import Mask, Worn
from koinon.view.log import log
from koinon.wire.connect import connect
from koinon.wire.connection import Connection
from koinon.wire.identity import Identity

HEARTBEAT_S = 15.0
"""Seconds between a node's signs of life."""

SILENCE_S = 45.0
"""Seconds without a word from the server after which the connection is given up."""

SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
"""Seconds between two attempts to connect: at first, and at most."""

SETTLED_S = 2.0
"""Seconds after which a conversation has gone well: when it is cut, the next attempt is not put off."""


@dataclass(frozen=True)
class Address:
    """Where the server is and how it is known.

    Attributes:
        url: `wss://HOST:PORT`.
        key: Its identity key, pinned.
        context: TLS settings.
    """

    url: str
    key: bytes
    context: ssl.SSLContext


class Node:
    """Takes part in one run until the final model is here.

    Args:
        federation: The definition on this node's own disk.
        address: The server.
        identity: The node's own identity.
        data: Its own data.
        home: Folder of its journals.
        policy: What its owner allows.
        token: One-time enrolment token, or empty.
        attack: How it lies, to test a federation; None: it does not.
    """

    def __init__(
        self,
        federation: Federation,
        address: Address,
        identity: Identity,
        data: DataSet,
        home: Path,
        policy: Policy,
        token: str = "",
        attack: Attack | None = None,
    ) -> None:
        self._attack = attack
        self._federation = federation
        self._address = address
        self._identity = identity
        self._data = data
        self._home = home
        self._policy = policy
        self._token = token
        self._run = ""
        self._participant: Participant | None = None
        self._outbox: Outbox | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._training = asyncio.Lock()
        self._welcomed_at = math.inf
        self._quit: asyncio.Future[Quit] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()

    async def run(self) -> Path | None:
        """Take part until the end, and come back after every cut.

        Returns:
            Where the final model is; None if `stop` was called before it was here.

        Raises:
            PolicyRefused: if the owner's policy forbids this run.
            ProtocolViolation: if the server refuses this node for good, or is not who it must be.
        """
        going_on = asyncio.create_task(self._take_part())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({going_on, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if going_on.done():
                return going_on.result()
            if self._outbox is not None:
                self._outbox.put(Leave("the node was stopped"))
                await asyncio.wait({going_on}, timeout=FAREWELL_S)
            log("left; join again to go on")
            return None
        finally:
            for task in (going_on, stopping):
                task.cancel()
            await asyncio.gather(going_on, stopping, return_exceptions=True)

    def stop(self) -> None:
        """Leave politely, and end soon; what was trained is kept for the next time."""
        self._stopping.set()

    async def _take_part(self) -> Path:
        wait = SHORTEST_WAIT_S
        while True:
            self._welcomed_at = math.inf
            try:
                if await self._connected():
                    break
            except Unavailable as error:
                log("not connected: {reason}", reason=str(error))
            settled = time.monotonic() - self._welcomed_at > SETTLED_S
            wait = SHORTEST_WAIT_S if settled else min(2 * wait, LONGEST_WAIT_S)
            await asyncio.sleep(wait * (0.5 + secrets.randbelow(1000) / 1000))
        assert self._participant is not None
        quit = self._quit.result()
        if not quit.finished:
            raise ProtocolViolation(f"the server sent this node away: {quit.reason}")
        return self._participant.export()

    async def _connected(self) -> bool:
        """One connection, from its beginning to its end; whether the run is over for this node."""
        address = self._address
        connection, answer = await connect(
            address.url,
            self._identity,
            pinned=address.key,
            context=address.context,
            definition=self._federation.digest,
            token=self._token,
        )
        try:
            if isinstance(answer, Goodbye):
                if answer.final:
                    raise ProtocolViolation(f"the server refused this node: {answer.reason}")
                raise Unavailable(answer.reason)
            participant = await self._welcomed(connection, answer)
            self._welcomed_at = time.monotonic()
            log("joined run {run} as {name}", run=answer.run, name=answer.name)
            reach("node after join")
            return await self._converse(connection, participant)
        finally:
            await connection.close()

    async def _welcomed(self, connection: Connection, welcome: Welcome) -> Participant:
        try:
            self._policy.check_join(self._federation, welcome.rounds)
        except PolicyRefused as refusal:
            await connection.send(Leave(str(refusal)))
            raise
        if self._participant is None or self._run != welcome.run:
            self._run = welcome.run
            journal = Journal(self._home / welcome.run)
            self._participant = Participant(
                self._federation,
                welcome.name,
                welcome.seed,
                self._data,
                journal,
                self._policy,
                time.monotonic,
                self._attack,
                welcome.run,
                self._identity,
            )
        return self._participant

    async def _converse(self, connection: Connection, participant: Participant) -> bool:
        outbox = self._outbox = Outbox(connection)
        tasks: list[asyncio.Task[None]] = [
            asyncio.create_task(outbox.run()),
            asyncio.create_task(self._read(connection, participant)),
            asyncio.create_task(self._beat(outbox)),
        ]
        try:
            self._do(participant.connected())
            waited: set[asyncio.Future[Any]] = {*tasks, self._quit}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._quit.done():
                return True
            for task in tasks:
                if task.done():
                    task.result()
            return False
        finally:
            self._outbox = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._do(participant.handle(Lost()))

    async def _read(self, connection: Connection, participant: Participant) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    message = await connection.receive()
            except TimeoutError:
                raise Unavailable(f"the server was silent for {SILENCE_S:g} s") from None
            if isinstance(message, Chunk):
                self._do(participant.chunk(message))
                reach("node mid download")
            else:
                assert isinstance(message, FromServer)  # the channel decodes nothing else
                if isinstance(message, Accepted):
                    reach("node before acknowledgement")
                self._do(participant.handle(Received(message)))
                if isinstance(message, Accepted):
                    log("round {round}: accepted", round=message.round)
                    reach("node between rounds")
                elif isinstance(message, Refused):
                    log("round {round}: refused: {reason}", logging.WARNING, round=message.round, reason=message.reason)

    async def _beat(self, outbox: Outbox) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            outbox.put(Heartbeat())

    def _do(self, outs: Sequence[Out]) -> None:
        for out in outs:
            match out:
                case Train() | Mask() | Evaluate():
                    self._start(out)
                case Say():
                    if self._outbox is not None:
                        self._outbox.put(out.message)
                case Upload():
                    if self._outbox is not None:
                        self._outbox.put(self._chunks(out))
                case Quit():
                    if not self._quit.done():
                        self._quit.set_result(out)
                case _:
                    assert_never(out)

    def _chunks(self, upload: Upload) -> FileChunks:
        assert self._participant is not None
        offer: Offer = upload.offer
        path = self._participant.path(offer)
        return FileChunks(offer.update.digest, path, 0, offer.update.size, upload.offset, "node mid upload")

    def _start(self, job: Job) -> None:
        task = asyncio.get_running_loop().create_task(self._work(job))
        self._jobs.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: "asyncio.Task[None]") -> None:
        """A fault that nobody foresaw ends the node with its words; a server that waits for it would wait long."""
        self._jobs.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None and not self._quit.done():
            self._quit.set_exception(fault)

    async def _work(self, job: Job) -> None:
        """Train or evaluate, one job at a time; the connection may come and go meanwhile."""
        participant = self._participant
        assert participant is not None
        try:
            async with self._training:
                event: Event | Worn = await asyncio.to_thread(participant.work, job)
            self._do(participant.handle(event))
        except (OSError, Unavailable) as error:
            log("not durable, so not done: {reason}", logging.ERROR, reason=str(error))
            await asyncio.sleep(LONGEST_WAIT_S)
            self._start(job)
