"""What a node's link can take, measured by the updates that the node sends."""

from collections.abc import Callable
from dataclasses import dataclass

from koinon.update.fitted import Link

_SHORTEST_S = 1e-3
"""Seconds that an update takes at least, as far as this can tell."""

_NEWEST = 0.5
"""Weight of the last update beside all before it."""


@dataclass
class Gauge:
    """Told when an update is offered, wanted and accepted, it knows the link.

    The offer and its answer are a round trip. The update itself takes one as well, until it is acknowledged, and
    beyond that what its bytes take.

    Args:
        clock: Seconds from any origin.

    Attributes:
        link: What is known; None before an update was accepted.
    """

    clock: Callable[[], float]
    link: Link | None = None
    _offered: float | None = None
    _began: float | None = None
    _trip: float = 0.0
    _size: int = 0

    def offered(self) -> None:
        """An update was offered."""
        self._offered, self._began = self.clock(), None

    def wanted(self, size: int) -> None:
        """So many bytes of it are wanted, and leave now."""
        if self._offered is not None:
            self._began, self._size = self.clock(), size
            self._trip = self._began - self._offered

    def accepted(self) -> None:
        """It has arrived."""
        if self._began is not None and self._size:
            seconds = max(_SHORTEST_S, self.clock() - self._began - self._trip)
            seen = Link(self._size / seconds, self._trip)
            self.link = seen if self.link is None else _between(self.link, seen)
        self._offered = self._began = None

    def lost(self) -> None:
        """The connection is cut: how long what is under way takes tells nothing."""
        self._offered = self._began = None


def _between(before: Link, seen: Link) -> Link:
    return Link(
        before.bytes_per_s + _NEWEST * (seen.bytes_per_s - before.bytes_per_s),
        before.round_trip_s + _NEWEST * (seen.round_trip_s - before.round_trip_s),
    )
