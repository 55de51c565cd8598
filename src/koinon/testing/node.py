"""A node's process in the simulated world: what `koinon join` does, without sockets and threads."""

from collections import deque
from collections.abc import Callable, Sequence

from koinon.core.errors import KoinonError, ProtocolViolation, Unavailable
from koinon.data.dataset import DataSet
from koinon.federation import Federation
from koinon.protocol.messages import (
    Chunk,
    FromServer,
    Goodbye,
    Heartbeat,
    Leave,
    Message,
    Offer,
    Ready,
    Summing,
    Welcome,
)
from koinon.protocol.node import Evaluate, Event, Lost, Quit, Received, Say, Train, Upload
from koinon.run.participant import Job, Out, Participant
from koinon.run.policy import Policy
from koinon.run.seat import Mask, Worn
from koinon.testing.disk import Disk
from koinon.testing.network import Link
from koinon.testing.outbox import Outbox, chunks
from koinon.testing.process import CERTIFICATE, DEFINITION, SERVER, Process, Surroundings, identity, tear
from koinon.wire import channel
from koinon.wire.channel import Channel

LONGEST_WAIT_S = 6.0
PATIENCE_S = 10.0


class Caller(Process):
    """Something that connects to the server with a node's identity, again and again.

    Args:
        dial: Gives a link to the server, or None when it cannot be reached.
    """

    def __init__(self, name: str, around: Surroundings, disk: Disk, dial: Callable[[str], Link | None]) -> None:
        super().__init__(name, around, disk)
        self._dial = dial
        self._link: Link | None = None
        self._greeting = b""
        self._channel: Channel | None = None
        self._outbox: Outbox | None = None
        self._heard = 0.0
        self._wait = 0.5

    def start(self) -> None:
        """Connect."""
        self._connect()
        self._beat()

    def kill(self) -> None:
        """End at once."""
        super().kill()
        if self._link is not None:
            self._link.sever(self.around.told("server"))

    def arrived(self, link: Link, frame: bytes) -> None:
        """A frame came in."""
        if link is self._link:
            self.guarded(lambda: self._frame(link, frame))

    def ended(self, link: Link) -> None:
        """The connection is gone."""
        if link is self._link:
            self.guarded(self._cut)

    def _welcomed(self, welcome: Welcome) -> None:
        self._say(Ready())

    def _told(self, message: FromServer) -> None:
        """A message came."""

    def _lost(self) -> None:
        """The connection is gone."""

    def _connect(self) -> None:
        self._link = self._dial(self.name)
        if self._link is None:
            self._retry()
            return
        self._heard = self.around.clock.now
        self._link.attach("node", self)
        self._greeting = channel.hello(identity(self.name))
        self._link.send("server", self._greeting)

    def _retry(self) -> None:
        self._wait = min(2 * self._wait, LONGEST_WAIT_S)
        self.after(self.duration(self._wait), self._connect)

    def _frame(self, link: Link, frame: bytes) -> None:
        self._heard = self.around.clock.now
        try:
            if self._channel is None:
                self._channel, proof = channel.prove(
                    identity(self.name),
                    self._greeting,
                    frame,
                    pinned=identity(SERVER).key,
                    certificate=CERTIFICATE,
                    definition=DEFINITION,
                )
                link.send("server", proof)
                return
            message = self._channel.open(frame)
            if self._outbox is not None:
                self._told(message)  # type: ignore[arg-type]  # the channel decodes nothing else
            elif isinstance(message, Welcome):
                self._outbox, self._wait = Outbox(self, self._transmit), 0.5
                self._welcomed(message)
            else:
                self._cut()
        except ProtocolViolation as violation:
            self.around.observer.accused(link, self.name, violation)
            self.tell(f"cuts: {violation}")
            self._cut()
        except Unavailable as error:
            self.tell(f"cuts: {error}")
            self._cut()

    def _say(self, message: Message) -> None:
        if self._outbox is not None:
            self._outbox.put([message])

    def _transmit(self, message: Message) -> None:
        assert self._link is not None and self._channel is not None
        if isinstance(message, Chunk):
            self.around.observer.uploaded(self.name, message)
        self._link.send("server", bytes(self._channel.seal(message)))

    def _cut(self) -> None:
        if self._link is None:
            return
        self._link.close("node")
        connected = self._outbox is not None
        if self._outbox is not None:
            self._outbox.close()
        self._link = self._channel = self._outbox = None
        if connected:
            self._lost()
        if self.alive:
            self._retry()

    def _beat(self) -> None:
        if self._link is not None and self.around.clock.now - self._heard > PATIENCE_S:
            self._cut()
        self._say(Heartbeat())
        self.after(PATIENCE_S / 2, self._beat)


class NodeProcess(Caller):
    """One life of a node.

    Attributes:
        quit: How it ended of itself, or None.
    """

    def __init__(
        self,
        name: str,
        around: Surroundings,
        disk: Disk,
        dial: Callable[[str], Link | None],
        federation: Federation,
        data: DataSet,
        policy: Policy,
        progressed: Callable[[], None],
    ) -> None:
        super().__init__(name, around, disk, dial)
        self._federation, self._data, self._policy = federation, data, policy
        self._progressed = progressed
        self._journal = around.parts.journal(around.folder / name, disk)
        self._participant: Participant | None = None
        self._jobs: deque[Job] = deque()
        self._working = False
        self.quit: Quit | None = None

    def close(self) -> None:
        """Let go of the files."""
        self._journal.close()

    def leave(self) -> None:
        """Its owner wants it back."""
        self._say(Leave("the owner needs the machine"))
        self.after(PATIENCE_S, lambda: self._end(Quit("left", finished=False)))

    def kill(self) -> None:
        """End at once; a model that had not been synced may be torn."""
        super().kill()
        self.close()
        for path in self._journal.folder.glob("model-*"):
            tear(path, self.around.rng)

    def _welcomed(self, welcome: Welcome) -> None:
        if self._participant is None:
            self._participant = self.around.parts.participant(
                self._federation,
                welcome.name,
                welcome.seed,
                self._data,
                self._journal,
                self._policy,
                lambda: self.around.clock.now,
                run=welcome.run,
                identity=identity(self.name),
                entropy=self.around.rng.randbytes,
            )
        self._do(self._participant.connected())

    def _told(self, message: FromServer) -> None:
        assert self._participant is not None
        if not isinstance(message, Heartbeat | Goodbye):
            self._progressed()
        if isinstance(message, Chunk):
            self._do(self._participant.chunk(message))
            return
        self._do(self._participant.handle(Received(message)))
        if isinstance(message, Goodbye):
            self._cut()

    def _lost(self) -> None:
        assert self._participant is not None
        self._do(self._participant.handle(Lost()))

    def _do(self, outs: Sequence[Out]) -> None:
        for out in outs:
            self.disk.opportunity("between two effects")
            match out:
                case Say():
                    if isinstance(out.message, Offer):
                        self.around.observer.offered(self.name, out.message)
                    elif isinstance(out.message, Summing):
                        self.around.observer.summing(self.name, out.message)
                    self._say(out.message)
                case Upload():
                    self._upload(out)
                case Train() | Mask() | Evaluate():
                    self._jobs.append(out)
                    self._work()
                case Quit():
                    self._end(out)

    def _end(self, quit: Quit) -> None:
        if self.alive:
            self.tell(f"quits: {quit}")
            self.quit = quit
            if self._link is not None:
                self._link.close("node")
            if self._outbox is not None:
                self._outbox.close()
            self.alive = False
            self._journal.close()

    def _upload(self, upload: Upload) -> None:
        if self._outbox is not None:
            assert self._participant is not None
            blob, path = upload.offer.update, self._participant.path(upload.offer)
            self._outbox.put(chunks(blob.digest, path, 0, blob.size, upload.offset))

    def _work(self) -> None:
        """One job at a time; the connection may come and go meanwhile."""
        if self._working or not self._jobs:
            return
        job = self._jobs.popleft()
        self._working = True
        seconds = self.duration(6.0 if self.name in self.around.weather.slow else 2.0)
        if self.around.rng.random() < 0.5:
            self._worked(job, lambda event: self.after(seconds, lambda: self._finish(job, event)))
        else:
            self.after(seconds, lambda: self._worked(job, lambda event: self._finish(job, event)))

    def _worked(self, job: Job, then: Callable[[Event | Worn], None]) -> None:
        assert self._participant is not None
        self._progressed()
        self.tell(f"works: {job}")
        try:
            event = self._participant.work(job)
        except (OSError, KoinonError) as error:
            self.tell(f"could not do {job}: {error}")
            self._again(job)
            return
        self.around.observer.made(self.name, event, self._journal)
        then(event)

    def _finish(self, job: Job, event: Event | Worn) -> None:
        assert self._participant is not None
        self._progressed()
        try:
            outs = self._participant.handle(event)
        except Unavailable as error:
            self.tell(f"could not write: {error}")
            self._again(job)
            return
        self._working = False
        self._do(outs)
        if self.alive:
            self._work()

    def _again(self, job: Job) -> None:
        self._working = False
        self._jobs.appendleft(job)
        self.after(LONGEST_WAIT_S, self._work)
