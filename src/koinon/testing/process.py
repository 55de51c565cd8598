"""What server and nodes have in common: timers that die with the process, a disk, and identities."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.types import ClientId
from koinon.run.coordinator import Coordinator
from koinon.run.participant import Participant
from koinon.run.settings import Settings
from koinon.testing.disk import Disk, FaultyJournal, FaultySpool, FaultyStore, Killed
from koinon.testing.invariants import Observer
from koinon.testing.network import Clock, Side, Weather
from koinon.wire.identity import Identity

DEFINITION = "0" * 64
CERTIFICATE = "c" * 64
SERVER = "server"


@cache
def identity(name: ClientId) -> Identity:
    """The identity of a node or of the server, the same every time."""
    return Identity(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


@dataclass(frozen=True)
class Parts:
    """The code under test; tests put broken parts here and see that this is noticed."""

    coordinator: type[Coordinator] = Coordinator
    store: type[FaultyStore] = FaultyStore
    spool: type[FaultySpool] = FaultySpool
    participant: type[Participant] = Participant
    journal: type[FaultyJournal] = FaultyJournal


@dataclass
class Surroundings:
    """What every process is given.

    Attributes:
        folder: Where the disks are.
        skew_s: What the world's clock shows more than has passed.
        trace: Where to tell what happens, or None.
    """

    seed: int
    folder: Path
    rng: random.Random
    clock: Clock
    weather: Weather
    observer: Observer
    faults: Counter[str]
    parts: Parts
    settings: Settings
    skew_s: float = 0.0
    trace: Callable[[str], None] | None = None

    def told(self, *sides: Side) -> dict[Side, float]:
        """When each side hears that a connection is gone; some never do."""
        return {side: self.rng.uniform(0.0, 2.0) for side in sides if self.rng.random() < 0.7}

    def tell(self, who: str, what: str) -> None:
        """One line of the trace."""
        if self.trace is not None:
            self.trace(f"{self.clock.now:9.3f}  {who:<8} {what}")


class Process:
    """Something that can be killed at any moment, and whose memory is then gone.

    Attributes:
        alive: Whether it runs.
        disk: Where it writes.
    """

    def __init__(self, name: str, around: Surroundings, disk: Disk) -> None:
        self.name = name
        self.around = around
        self.disk = disk
        self.alive = True

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something later, if it still runs then."""
        self.around.clock.at(self.around.clock.now + seconds, lambda: self.guarded(action))

    def guarded(self, action: Callable[[], None]) -> None:
        """Do something; when that kills the process, the world goes on without it."""
        if not self.alive:
            return
        try:
            action()
        except Killed:
            self.kill()

    def kill(self) -> None:
        """End at once."""
        self.alive = False
        self.tell("is killed")

    def tell(self, what: str) -> None:
        """One line of the trace."""
        self.around.tell(self.name, what)

    def duration(self, longest: float) -> float:
        """How long something takes, in seconds."""
        return self.around.rng.uniform(0.05, 1.0) * longest


def tear(path: Path, rng: random.Random) -> None:
    """Lose the end of a file that nobody had made durable."""
    size = path.stat().st_size
    if size and rng.random() < 0.5:
        with path.open("rb+") as file:
            file.truncate(rng.randrange(size + 1))
