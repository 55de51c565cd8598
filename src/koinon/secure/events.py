"""What happens to the two state machines of a secure sum, and what they ask for."""

from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from koinon.core.types import ClientId
from koinon.secure.mask import Words
from koinon.secure.messages import FromClient, FromServer
from koinon.secure.opening import Opening
from koinon.secure.ring import Ring

MessageT = TypeVar("MessageT")
"""What is said by one side, in the words of one kind of sum."""

OpeningT = TypeVar("OpeningT")
"""What tells how such a sum is read out."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Take part in a round.

    Attributes:
        round: Its number.
        update: Which of the client's updates it would add up: rounds of one number are attempts for one update, of which
            a survivor set is signed in one only. None: the round's own.
    """

    round: int
    update: int | None = None


@dataclass(frozen=True, slots=True)
class Heard(Generic[MessageT]):
    """A message from the server."""

    message: MessageT


@dataclass(frozen=True, slots=True)
class Contribute:
    """The client's encoded vector, as `Want` asked for; it is not changed."""

    encoded: Words


@dataclass(frozen=True, slots=True)
class Say(Generic[MessageT]):
    """Send to the server."""

    message: MessageT


@dataclass(frozen=True, slots=True)
class Want:
    """Encode the update in this ring and `Contribute` it; the same bytes whenever it is wanted for the same round."""

    round: int
    ring: Ring


ClientEvent: TypeAlias = Begin | Heard[FromServer] | Contribute
ClientEffect: TypeAlias = Say[FromClient] | Want


@dataclass(frozen=True, slots=True)
class Received(Generic[MessageT]):
    """A client said something."""

    client: ClientId
    message: MessageT


@dataclass(frozen=True, slots=True)
class Stored:
    """A client's masked update, with this SHA-256 and of the ring's size, came by another way and is durable."""

    client: ClientId
    digest: bytes


@dataclass(frozen=True, slots=True)
class Returned:
    """A client is back and may have missed what it was told last."""

    client: ClientId


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Who has not answered yet will not be waited for; in the phase "opened", `Open` is wanted again.

    Attributes:
        group: In which of a round's groups; None: in all of them.
    """

    group: int | None = None


@dataclass(frozen=True, slots=True)
class Tell(Generic[MessageT]):
    """Send to a client."""

    client: ClientId
    message: MessageT


@dataclass(frozen=True, slots=True)
class Keep:
    """Make a masked update durable, before the state."""

    client: ClientId
    data: bytes


@dataclass(frozen=True, slots=True)
class Open(Generic[OpeningT]):
    """Add up the survivors' masked updates and take the leftover masks away."""

    opening: OpeningT


@dataclass(frozen=True, slots=True)
class Refuse:
    """What a client said does not count; `at_fault`: no honest client says it, at whatever time."""

    client: ClientId
    reason: str
    at_fault: bool = False


@dataclass(frozen=True, slots=True)
class Abort:
    """The round ends without a sum."""

    reason: str


ServerEvent: TypeAlias = Received[FromClient] | Stored | Returned | Elapsed
ServerEffect: TypeAlias = Tell[FromServer] | Keep | Open[Opening] | Refuse | Abort
