"""What the server's state machine is told (events) and what it asks for (effects).

Effects are carried out in the order in which they are given, and a `Persist` has reached the disk before the
next one begins. That one rule makes "acknowledged" mean "durable".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from koinon.core.types import ClientId
from koinon.protocol.messages import Blob, Delivered, Delta, FromNode, FromServer, Offer, Ready
from koinon.secure.opening import Opening


@dataclass(frozen=True, slots=True)
class Joined:
    """A node proved its identity, was let in and said what it holds."""

    node: ClientId
    ready: Ready


@dataclass(frozen=True, slots=True)
class Left:
    """A node's connection is gone."""

    node: ClientId


@dataclass(frozen=True, slots=True)
class Contested:
    """Someone proved to hold the identity of a node that is connected already."""

    node: ClientId


@dataclass(frozen=True, slots=True)
class Received:
    """A message other than a chunk came from a node that has joined."""

    node: ClientId
    message: FromNode


@dataclass(frozen=True, slots=True)
class Arrived:
    """All bytes of an expected update are in the spool, durable; `fault` says what is wrong with them."""

    node: ClientId
    round: int
    digest: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """The round's new model is computed and durable.

    Attributes:
        told: What the next round's nodes are told beside it.
        delta: What leads to it from the model before, durable too; None where the way down has no codec or the model is the same.
        spoiled: Why a secure sum turned out to be none, so that no update counts; empty where all is well.
        enough: Why no more rounds are wanted, though some are left; empty if they are.
    """

    round: int
    model: Blob
    told: Mapping[str, float] = field(default_factory=dict)
    delta: Delta | None = None
    spoiled: str = ""
    enough: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """The world's clock shows `now`, in seconds from any origin. It may jump."""

    now: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The operator ends the run."""

    reason: str


Event: TypeAlias = Joined | Left | Contested | Received | Arrived | Closed | Tick | Stopped


Outcome: TypeAlias = Literal["accepted", "refused", "declined", "failed"]
"""How a node's part in a round was settled."""


@dataclass(frozen=True, slots=True)
class RoundOpened:
    """Record: these nodes are asked for this round; `attempt`: once more, since a secure sum of others failed."""

    round: int
    cohort: tuple[ClientId, ...]
    wanted: int
    needed: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class RoundExtended:
    """Record: these nodes are asked as well, since too few of the others answered."""

    round: int
    added: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """Record: a node's part in the round has ended; an accepted one comes with what it offered."""

    round: int
    node: ClientId
    outcome: Outcome
    reason: str
    offer: Offer | None = None


@dataclass(frozen=True, slots=True)
class Summed:
    """Record: something happened in the round's secure sum; all of them, in order, make its state.

    Attributes:
        node: Who said `message`, or offered what is durable now; None: time was up.
        message: In the encoding of `koinon.secure.messages`, or empty.
        offer: A masked update that came.
        group: For whom time was up.
    """

    round: int
    node: ClientId | None
    message: bytes = b""
    offer: Offer | None = None
    group: int = 0


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Record: the node holds the final model."""

    node: ClientId
    message: Delivered


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Record: no round will follow."""

    status: Literal["finished", "aborted"]
    reason: str


Record: TypeAlias = RoundOpened | RoundExtended | Settled | Summed | HandedOver | RunEnded


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the record durable before going on."""

    record: Record


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a node, if it is still connected."""

    node: ClientId
    message: FromServer


@dataclass(frozen=True, slots=True)
class Stream:
    """Send the bytes of a model or of a delta from `offset` on, as chunks, after what was sent before."""

    node: ClientId
    blob: Blob
    offset: int


@dataclass(frozen=True, slots=True)
class Expect:
    """Make room for an offered update and tell the node from where to send it."""

    node: ClientId
    offer: Offer


@dataclass(frozen=True, slots=True)
class Close:
    """Compute the next model from the accepted updates, in this order; answer by `Closed`.

    Attributes:
        accepted: Whose updates count, in canonical order.
        offers: What each of them offered.
        openings: Where they are masked: which masks are left in whose sum, for each group that is known by its sum.
        failed: Why there is no such sum, where there should be.
    """

    round: int
    accepted: tuple[ClientId, ...]
    offers: tuple[Offer, ...]
    openings: tuple[Opening, ...] = ()
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Say goodbye and cut the connection."""

    node: ClientId
    reason: str
    final: bool


Effect: TypeAlias = Persist | Send | Stream | Expect | Close | Disconnect
