"""A virtual clock, and a network on it that loses, repeats, reorders and damages what it carries."""

import heapq
import itertools
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from koinon.core.types import ClientId

Side: TypeAlias = Literal["node", "server"]


class Clock:
    """Time that passes only from one planned event to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Plan an event; those planned for one instant happen in the order of planning."""
        heapq.heappush(self._planned, (max(time, self.now), next(self._count), action))

    def step(self) -> None:
        """Go on to the next event and let it happen."""
        self.now, _, action = heapq.heappop(self._planned)
        action()


class Listener(Protocol):
    """What stands at one end of a link."""

    def arrived(self, link: "Link", frame: bytes) -> None:
        """A frame came."""

    def ended(self, link: "Link") -> None:
        """Nothing will come any more."""


@dataclass
class Weather:
    """How the network is at present.

    Attributes:
        tampering: Chance that a frame is lost, repeated, overtaken or damaged.
        latency_s: Longest time that a frame takes.
        slow: Nodes whose frames take several times as long.
        unreachable: Nodes behind a partition -> when it ends.
    """

    tampering: float
    latency_s: float
    slow: set[ClientId]
    unreachable: dict[ClientId, float]


class Link:
    """One connection: in each direction frames in order, until an end is closed or the link is severed.

    Attributes:
        node: Whose it is.
        tampered: Whether a frame on it was lost, repeated, overtaken or damaged, so that an end may complain.
    """

    def __init__(self, clock: Clock, rng: random.Random, weather: Weather, node: ClientId, faults: Counter[str]):
        self.node = node
        self.tampered = False
        self._clock, self._rng, self._weather, self._faults = clock, rng, weather, faults
        self._ends: dict[Side, Listener | None] = {"node": None, "server": None}
        self._latest: dict[Side, float] = defaultdict(float)
        self._waiting: dict[Side, deque[bytes | None]] = defaultdict(deque)
        self._severed = False

    def attach(self, side: Side, listener: Listener) -> None:
        """Let a listener have what arrives at this end."""
        self._ends[side] = listener

    def send(self, to: Side, frame: bytes) -> None:
        """Carry a frame to the other end, unless something happens to it."""
        if self._rng.random() >= self._weather.tampering:
            self._carry(to, frame)
            return
        self.tampered = True
        kind = self._rng.choice(("lost", "repeated", "overtaken", "damaged"))
        self._faults[f"frame {kind}"] += 1
        if kind == "repeated":
            self._carry(to, frame)
            self._carry(to, frame)
        elif kind == "overtaken":
            self._clock.at(self._clock.now + 3 * self._weather.latency_s, lambda: self._deliver(to, frame))
        elif kind == "damaged":
            damaged = bytearray(frame)
            damaged[self._rng.randrange(len(damaged))] ^= 1 << self._rng.randrange(8)
            self._carry(to, bytes(damaged))

    def close(self, side: Side) -> None:
        """This end wants no more; the other hears of it after what was sent before."""
        if self._ends[side] is not None:
            self._ends[side] = None
            self._carry("server" if side == "node" else "node", None)

    def sever(self, told: dict[Side, float]) -> None:
        """Lose what is on its way; each end in `told` hears of it after so many seconds, the others never."""
        self._severed = True
        for side, seconds in told.items():
            self._clock.at(self._clock.now + seconds, lambda side=side: self._end(side))  # type: ignore[misc]

    def _carry(self, to: Side, frame: bytes | None) -> None:
        longest = self._weather.latency_s * (6 if self.node in self._weather.slow else 1)
        self._latest[to] = max(self._latest[to], self._clock.now + self._rng.uniform(0.1, 1.0) * longest)
        self._waiting[to].append(frame)
        self._clock.at(self._latest[to], lambda: self._next(to))

    def _next(self, to: Side) -> None:
        """Deliver the oldest frame that waits; behind a partition it waits until that ends."""
        until = self._weather.unreachable.get(self.node, 0.0)
        if self._clock.now < until:
            self._clock.at(until, lambda: self._next(to))
        else:
            self._deliver(to, self._waiting[to].popleft())

    def _deliver(self, to: Side, frame: bytes | None) -> None:
        if self._severed:
            return
        if frame is None:
            self._end(to)
        elif (listener := self._ends[to]) is not None:
            listener.arrived(self, frame)

    def _end(self, side: Side) -> None:
        if (listener := self._ends[side]) is not None:
            self._ends[side] = None
            listener.ended(self)
