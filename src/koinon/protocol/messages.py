"""What the server and a node say to each other: typed, frozen, of bounded size.

A conversation, the node on the left:

    Hello            ->
                     <-  Challenge     the server proves its identity
    Proof            ->                the node proves its own
                     <-  Welcome | Goodbye
    Ready            ->                what the node already holds
                     <-  Task, Chunk…  the round's model, from where the node's copy ends, or what has changed since
    Summing          <->               where updates are added up secretly: keys, shares, who survived
    Offer            ->                in such a round, of the masked update
                     <-  Continue      how much of the update the server already holds
    Chunk…           ->
                     <-  Accepted | Refused
                     <-  Finished, Chunk…
    Delivered        ->

A node sends `Heartbeat` at any time and the server answers in kind. Every message after `Proof` travels in a signed, numbered envelope.
"""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from koinon.core.statistics import Statistic

VERSION = 1
"""Version of the protocol; peers with different versions refuse each other."""

CHUNK_BYTES = 1 << 20
"""Largest piece of a tensor in one message, in bytes."""

MAX_MESSAGE_BYTES = CHUNK_BYTES + (64 << 10)
"""Largest message, envelope included, in bytes."""

MOST_DELTAS = 64
"""Most deltas that lead from one model to another; who is further behind is sent the model."""

ATTEMPTS = 64
"""How often it is tried to add a round's updates up secretly."""

Digest: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Key: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Nonce: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature: TypeAlias = Annotated[bytes, Meta(min_length=64, max_length=64)]
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Text: TypeAlias = Annotated[str, Meta(max_length=2000)]
Count: TypeAlias = Annotated[int, Meta(ge=0, lt=2**53)]
Round: TypeAlias = Annotated[int, Meta(ge=0, lt=2**31)]
Attempt: TypeAlias = Annotated[int, Meta(ge=0, lt=ATTEMPTS)]
Positive: TypeAlias = Annotated[float, Meta(ge=0, lt=1e18)]


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of binary data that travels in chunks: SHA-256 in hex, and size in bytes."""

    digest: Digest
    size: Count


class Delta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a round changed: an encoded difference that leads from one model to the next.

    Attributes:
        base: Digest of the model that it is added to.
        round: The round that it is of.
        change: The encoded difference.
    """

    base: Digest
    round: Round
    change: Blob


Deltas: TypeAlias = Annotated[tuple[Delta, ...], Meta(max_length=MOST_DELTAS)]
"""Differences that lead, one after the other, to a model."""


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A node opens the conversation."""

    version: int
    key: Key
    nonce: Nonce


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The server proves that it holds its identity key and that this TLS certificate is its own.

    Attributes:
        run: Id of the run that it serves.
        certificate: SHA-256 of its TLS certificate (DER).
    """

    key: Key
    nonce: Nonce
    run: Name
    certificate: Digest | None
    signature: Signature


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The node proves its identity and says what it wants to run.

    Attributes:
        definition: Digest of the definition on the node's own disk.
        name: The name it asks for when it enrols by a token; an approved node has one already.
        token: One-time enrolment token, or empty.
    """

    definition: Digest
    name: Name | None
    token: Annotated[str, Meta(max_length=128)]
    signature: Signature


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The node is in; what it is called, and the run's seed for what is not secret (batch order)."""

    name: Name
    run: Name
    rounds: Round
    seed: int


class Goodbye(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The server closes the conversation and says why. `final`: trying again will not help."""

    reason: Text
    final: bool


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """What the node already has, so that the server goes on from there; also said when deltas do not lead on from it.

    Attributes:
        model: Digest of the model that it holds, wholly or in part.
        offset: How many of its bytes it holds.
        trained: The last round that it has an update for, 0 for none.
        examples: How many examples it would train on, for sampling in proportion to size.
    """

    model: Digest | None = None
    offset: Count = 0
    trained: Round = 0
    examples: Count = 0


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The sender is alive."""


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The server wants a heartbeat now: someone else came with this node's identity."""


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Train this round from this model.

    Attributes:
        cohort: How many nodes were asked; their expected number where who takes part is secret.
        deadline_s: Seconds until a reply may be refused as late.
        told: What the round's stages need of the server's state, by name.
        deltas: What leads to the model from the one that the node holds; these follow in chunks in place of the model.
        attempt: Where updates are added up secretly: the how manieth try this is, from 0. None where they are not.
    """

    round: Round
    model: Blob
    cohort: Count
    deadline_s: Positive
    told: Annotated[dict[str, float], Meta(max_length=64)] = {}
    deltas: Deltas = ()
    attempt: Attempt | None = None


class Summing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A message of the round's secure sum, in its own encoding (`koinon.secure.messages`)."""

    message: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


class Chunk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Bytes `offset ..` of a blob."""

    digest: Digest
    offset: Count
    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A node has an update and says what it is.

    Attributes:
        update: The encoded update.
        weight: Its weight in the mean.
        examples: How many examples it was trained on.
        metrics: Statistics of training, prefixed `train_`, and of the received model on the node's held-out data.
        seconds: Time that training took on the node.
    """

    round: Round
    update: Blob
    weight: Positive
    examples: Count
    metrics: Annotated[dict[str, Statistic], Meta(max_length=64)]
    seconds: Positive


class Continue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Send the offered update, from this offset on."""

    round: Round
    offset: Count


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The update is durable on the server and counts."""

    round: Round


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The server does not want the node's work for this round, late, malformed or no longer needed."""

    round: Round
    reason: Text


class Declined(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The node will not do the task: its owner's policy forbids it."""

    round: Round
    reason: Text


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The node tried and failed, e.g. the loss was not finite."""

    round: Round
    reason: Text


class Finished(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The run is over; the final model follows in chunks, or the deltas that lead to it."""

    round: Round
    model: Blob
    deltas: Deltas = ()


class Delivered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The node holds the final model; its metrics on the node's held-out data."""

    model: Digest
    metrics: Annotated[dict[str, Statistic], Meta(max_length=64)]


class Leave(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The node goes away on purpose and will not be waited for."""

    reason: Text


Handshake: TypeAlias = Hello | Challenge | Proof
FromNode: TypeAlias = Ready | Heartbeat | Summing | Offer | Chunk | Declined | Failed | Delivered | Leave
FromServer: TypeAlias = (
    Welcome | Goodbye | Heartbeat | Probe | Task | Summing | Chunk | Continue | Accepted | Refused | Finished
)
Message: TypeAlias = Handshake | FromNode | FromServer
