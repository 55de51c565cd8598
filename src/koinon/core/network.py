"""How nodes are connected: bandwidth, round trip, jitter, loss and cuts, as a value that every runtime takes.

# profile.toml
up_mbit = 10.0            # megabits in a second from a node
down_mbit = 50.0          # megabits in a second to it
round_trip_ms = 40.0      # there and back, without waiting for bandwidth
jitter_ms = 5.0           # up to so much more, each way
loss = 0.001              # share of packets that are lost and sent again
cuts_per_hour = 2.0       # how often a connection breaks, on average
cut_s = 10.0              # and for how long
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from koinon.core import toml
from koinon.core.errors import AdmissionError, Unavailable

PACKET_BYTES = 1460
"""Payload of a TCP segment on Ethernet."""

Rate: TypeAlias = Annotated[float, Meta(gt=0)]
Span: TypeAlias = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True)
class Lane:
    """One direction of a connection.

    Attributes:
        bytes_per_s: Payload that goes through in a second, at most.
        delay_s: From one end to the other, for what is as short as a packet.
        jitter_s: Up to so much more.
        loss: Share of packets that are lost.
    """

    bytes_per_s: float
    delay_s: float
    jitter_s: float
    loss: float


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """How each node is connected to the server, apart from all others.

    Packets that are lost are sent again, which delays what comes after them by a round trip; and they keep TCP from
    using more than `PACKET_BYTES / round trip · sqrt(3/2 / loss)` of the bandwidth.

    Source: Mathis et al., "The macroscopic behavior of the TCP congestion avoidance algorithm" (1997), eq. 3.

    Attributes:
        up_mbit: Megabits in a second from a node, > 0.
        down_mbit: Megabits in a second to it, > 0.
        round_trip_ms: Milliseconds there and back, for a message as short as a packet.
        jitter_ms: Up to so many more, each way.
        loss: Share of packets that are lost, in [0, 1).
        cuts_per_hour: How often a connection breaks, on average.
        cut_s: Seconds for which it is then broken.
    """

    up_mbit: Rate
    down_mbit: Rate
    round_trip_ms: Span
    jitter_ms: Span = 0.0
    loss: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    cuts_per_hour: Span = 0.0
    cut_s: Span = 10.0

    @classmethod
    def named(cls, text: str) -> "Network":
        """A network of `NETWORKS` by its name, or the one in a TOML file.

        Raises:
            Unavailable: if there is neither such a name nor such a file.
            AdmissionError: if the file is no profile.
        """
        if text in NETWORKS:
            return NETWORKS[text]
        path = Path(text)
        if not path.exists():
            raise Unavailable(f"there is no network {text}; write {', '.join(NETWORKS)} or a profile's file")
        return toml.read(path, cls, "network profile")

    @property
    def round_trip_s(self) -> float:
        """Seconds there and back, without jitter."""
        return self.round_trip_ms / 1e3

    @property
    def up(self) -> Lane:
        """From a node."""
        return self._lane(self.up_mbit)

    @property
    def down(self) -> Lane:
        """To a node."""
        return self._lane(self.down_mbit)

    def seconds(self, bytes_up: int, bytes_down: int) -> float:
        """How long a node's part of a round is under way, its training left out.

        The model comes, the update is offered and asked for, and goes: two round trips, and the bytes. Half of the jitter is
        the mean of it; cuts are left out.
        """
        trips = 2 * self.round_trip_s + 4 * self.jitter_ms / 2e3
        return trips + bytes_up / self.up.bytes_per_s + bytes_down / self.down.bytes_per_s

    def _lane(self, mbit: float) -> Lane:
        bytes_per_s = mbit * 1e6 / 8
        if self.loss and self.round_trip_s:
            bytes_per_s = min(bytes_per_s, PACKET_BYTES / self.round_trip_s * math.sqrt(1.5 / self.loss))
        return Lane(bytes_per_s, self.round_trip_s / 2, self.jitter_ms / 1e3, self.loss)

    def __post_init__(self) -> None:
        for name in ("up_mbit", "down_mbit"):
            if not 0 < getattr(self, name) < math.inf:
                raise AdmissionError(f"{name} is {getattr(self, name)}; give megabits in a second, > 0")


NETWORKS = {
    "slow-3g": Network(up_mbit=0.4, down_mbit=0.4, round_trip_ms=400.0, jitter_ms=50.0),
    "dsl": Network(up_mbit=10.0, down_mbit=50.0, round_trip_ms=40.0, jitter_ms=5.0),
    "lan": Network(up_mbit=1000.0, down_mbit=1000.0, round_trip_ms=1.0),
}
"""Networks by name."""
