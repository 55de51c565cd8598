"""The server process of the simulated world: what `koinon serve` does, without sockets and threads."""

from collections.abc import Callable, Sequence

from koinon.core.errors import KoinonError, ProtocolViolation, Unavailable
from koinon.core.types import ClientId
from koinon.durable.history import RunInfo
from koinon.federation import Federation
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
    Stream,
    Tick,
)
from koinon.protocol.messages import Chunk, FromNode, Goodbye, Message, Ready, Welcome
from koinon.run.coordinator import Coordinator, Job, Out, Seal
from koinon.testing.disk import Disk
from koinon.testing.invariants import require
from koinon.testing.network import Link
from koinon.testing.outbox import Outbox, chunks
from koinon.testing.process import CERTIFICATE, SERVER, Process, Surroundings, identity, tear
from koinon.wire import channel
from koinon.wire.channel import Channel

TICK_S = 1.0
RETRY_S = 2.0
GATHER_S = 0.2


class _Visitor:
    """One connection as the server has it."""

    def __init__(self, server: "ServerProcess", link: Link) -> None:
        self.link = link
        self.greeting = b""
        self.challenge = b""
        self.channel: Channel | None = None
        self.name = ""
        self.closed = False
        self.outbox = Outbox(server, lambda message: server._transmit(self, message))


class ServerProcess(Process):
    """One life of the server, from its start to its end.

    Args:
        names: Public key -> the name under which its holder may come in.
        progressed: Called when a node's message was taken or work was done.
    """

    def __init__(
        self,
        around: Surroundings,
        disk: Disk,
        federation: Federation,
        info: RunInfo,
        names: dict[bytes, ClientId],
        progressed: Callable[[], None],
    ) -> None:
        super().__init__(SERVER, around, disk)
        self._names = names
        self._visitors: dict[Link, _Visitor] = {}
        self._members: dict[ClientId, _Visitor] = {}
        self._progressed = progressed
        self._finished: list[Event] = []
        self._store = around.parts.store(around.folder / "run", disk)
        self.coordinator = self._made(federation, self._store.info() or info)

    def start(self) -> None:
        """Do what the last life left undone, and let time pass."""
        self._do(self.coordinator.unfinished)
        self._tick()

    def stop(self, reason: Event) -> None:
        """The operator's word."""
        self._event(reason)

    def kill(self) -> None:
        """End at once; what was written and not made durable may be torn."""
        super().kill()
        self.close()
        for path in self._store.spool.glob("round-*/*"):
            if path not in self.around.observer.sealed:
                tear(path, self.around.rng)
        for visitor in self._visitors.values():
            if not visitor.closed:
                visitor.link.sever(self.around.told("node"))

    def close(self) -> None:
        """Let go of the files."""
        self._store.close()

    def accept(self, link: Link) -> None:
        """Somebody connects."""
        self._visitors[link] = _Visitor(self, link)
        link.attach("server", self)

    def arrived(self, link: Link, frame: bytes) -> None:
        """A frame came in."""
        self.guarded(lambda: self._frame(self._visitors[link], frame))

    def ended(self, link: Link) -> None:
        """A connection is gone."""
        self.guarded(lambda: self._drop(self._visitors[link]))

    def _made(self, federation: Federation, info: RunInfo) -> Coordinator:
        around = self.around
        made = around.parts.coordinator(
            federation,
            info,
            self._store,
            around.settings,
            lambda: around.clock.now + around.skew_s,
            identities={name: key for key, name in self._names.items()},
        )
        made.spool = around.parts.spool(*made.spooled(), self.disk)
        return made

    def _tick(self) -> None:
        self._event(Tick(self.around.clock.now + self.around.skew_s))
        self.after(TICK_S, self._tick)

    def _frame(self, visitor: _Visitor, frame: bytes) -> None:
        if visitor.closed:
            return
        try:
            if visitor.channel is not None:
                self._message(visitor, visitor.channel.open(frame))
            elif not visitor.greeting:
                visitor.greeting = frame
                visitor.challenge = channel.challenge(
                    identity(SERVER), frame, run=self.coordinator.info.id, certificate=CERTIFICATE
                )
                visitor.link.send("node", visitor.challenge)
            else:
                visitor.channel, applicant = channel.admit(identity(SERVER), visitor.greeting, visitor.challenge, frame)
                self._proved(visitor, self._names[applicant.key])
        except ProtocolViolation as violation:
            self.around.observer.accused(visitor.link, "the server", violation)
            self.tell(f"cuts {visitor.link.node}: {violation}")
            self._drop(visitor)
        except (OSError, Unavailable) as error:
            self._could_not(f"take what {visitor.link.node} sends", error)
            self._drop(visitor)

    def _proved(self, visitor: _Visitor, name: ClientId) -> None:
        if name in self._members:
            self._event(Contested(name))
            visitor.outbox.put([Goodbye(f"{name} is connected already", final=False)])
            return
        visitor.name = name
        info = self.coordinator.info
        visitor.outbox.put([Welcome(name, info.id, info.rounds, info.seed)])

    def _message(self, visitor: _Visitor, message: Message) -> None:
        name = visitor.name
        if self._members.get(name) is not visitor:
            if not isinstance(message, Ready):
                raise ProtocolViolation(f"{name} sent {type(message).__name__} where Ready is due")
            if name in self._members:
                visitor.outbox.put([Goodbye(f"{name} is connected already", final=False)])
                return
            self._members[name] = visitor
            self._event(Joined(name, message))
        elif isinstance(message, Chunk):
            self._progressed()
            self._do(self.coordinator.chunk(name, message))
        else:
            assert isinstance(message, FromNode)
            self.around.observer.heard(name, message)
            self._event(Received(name, message))

    def _event(self, *events: Event) -> None:
        for event in events:
            if not isinstance(event, Tick):
                self.tell(f"{type(event).__name__} {getattr(event, 'node', '')} {getattr(event, 'message', '')}")
        try:
            self._do(self.coordinator.handle(*events))
        except Unavailable as error:
            self._could_not("write", error)
            for event in events:
                if isinstance(event, Closed):
                    self._later(event)
                else:
                    self._send(getattr(event, "node", ""), Goodbye("the server's disk is full or broken", final=False))

    def _later(self, event: Event) -> None:
        self.after(RETRY_S, lambda: self._event(event))

    def _could_not(self, what: str, error: Exception) -> None:
        self.tell(f"could not {what}: {error}")
        require(self.disk.full, f"the server could not {what}, though its disk has room: {error}")

    def _do(self, outs: Sequence[Out]) -> None:
        for out in outs:
            self.disk.opportunity("between two effects")
            self.around.observer.server_does(out)
            match out:
                case Seal() | Close():
                    self._job(out)
                case Send():
                    self._send(out.node, out.message)
                case Stream():
                    self._stream(out)
                case Disconnect():
                    self._send(out.node, Goodbye(out.reason, out.final))

    def _send(self, node: ClientId, *messages: Message) -> None:
        if (visitor := self._members.get(node)) is not None:
            visitor.outbox.put(messages)

    def _stream(self, stream: Stream) -> None:
        if (visitor := self._members.get(stream.node)) is not None:
            path, begin = self.coordinator.file(stream.blob)
            visitor.outbox.put(chunks(stream.blob.digest, path, begin, stream.blob.size, stream.offset))

    def _transmit(self, visitor: _Visitor, message: Message) -> None:
        assert visitor.channel is not None
        self.tell(f"-> {visitor.link.node} {message}")
        visitor.link.send("node", bytes(visitor.channel.seal(message)))
        if isinstance(message, Goodbye):
            self._drop(visitor)

    def _drop(self, visitor: _Visitor) -> None:
        if visitor.closed:
            return
        visitor.closed = True
        visitor.outbox.close()
        visitor.link.close("server")
        if self._members.get(visitor.name) is visitor:
            del self._members[visitor.name]
            self.coordinator.gone(visitor.name)
            self._event(Left(visitor.name))

    def _job(self, job: Job) -> None:
        seconds = self.duration(1.5 if isinstance(job, Close) else 0.3)
        if self.around.rng.random() < 0.5:  # a thread may be fast or slow: both orders are possible
            self._worked(job, lambda event: self.after(seconds, lambda: self._finish(event)))
        else:
            self.after(seconds, lambda: self._worked(job, self._finish))

    def _finish(self, event: Event) -> None:
        """Take what work has brought through the protocol, together with what else it brings at about that time."""
        self._finished.append(event)
        if len(self._finished) == 1:
            self.after(self.duration(GATHER_S), self._flush)

    def _flush(self) -> None:
        events, self._finished = self._finished, []
        self._event(*events)

    def _worked(self, job: Job, then: Callable[[Event], None]) -> None:
        self._progressed()
        try:
            event = self.coordinator.work(job)
        except (OSError, KoinonError) as error:
            self._could_not(f"do {job}", error)
            if isinstance(job, Close):
                self.after(RETRY_S, lambda: self._job(job))
            else:
                self._send(job.node, Goodbye("the server's disk is full or broken", final=False))
            return
        self.around.observer.worked(job, event, self.coordinator)
        then(event)
