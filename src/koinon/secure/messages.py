"""What clients and the server say to each other in a secure sum: typed, frozen, of bounded size.

A round, the client on the left:

    Advert        ->                  public keys of the round, signed
                  <-  Invitation      everybody's signed key digests, the neighbours' keys
    Shares        ->                  a sealed parcel for each neighbour
                  <-  Delivery        the neighbours' parcels
    Masked        ->                  the masked update
                  <-  Survivors       whose masked updates are in
    Agreed        ->                  the client's signature over just these
                  <-  Agreement       the neighbours' signatures
    Reveal        ->                  one share for each neighbour: of its self-mask's seed if it survived, of its key's if not
"""

from functools import cache
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from koinon.core.errors import ProtocolViolation
from koinon.secure.shamir import SHARE_BYTES

MOST_CLIENTS = 100_000
"""Most clients of one sum."""

Name: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Round: TypeAlias = Annotated[int, Meta(ge=1, lt=2**31)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature: TypeAlias = Annotated[bytes, Meta(min_length=64, max_length=64)]
Ciphertext: TypeAlias = Annotated[bytes, Meta(min_length=1088, max_length=1088)]
Share: TypeAlias = Annotated[bytes, Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MOST_CLIENTS)]
Names: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=MOST_CLIENTS)]


class PublicKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Half of what two clients agree on a secret with: an X25519 key and an ML-KEM-768 key."""

    x25519: Annotated[bytes, Meta(min_length=32, max_length=32)]
    mlkem: Annotated[bytes, Meta(min_length=1184, max_length=1184)]


class Advert(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A client takes part.

    Attributes:
        channel: Keys under which others seal shares for it.
        mask: Keys of its pairwise masks; the server may learn their seed.
        signature: By the client's identity, over run, round, its name and both keys' digest.
    """

    round: Round
    channel: PublicKeys
    mask: PublicKeys
    signature: Signature


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One client of a cohort: its identity, the SHA-256 of its advertised keys, and its signature over them.

    A client believes the identity only if it is the one that it trusts by that name.
    """

    name: Name
    identity: Annotated[bytes, Meta(min_length=32, max_length=32)]
    keys: Digest
    signature: Signature


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Who takes part. The graph follows from it, and so do its sizes, which a client compares to its own.

    Attributes:
        cohort: Everybody, the receiver included, by name.
        neighbours: The adverts of the receiver's neighbours.
        threshold: Shares that reveal a secret.
    """

    round: Round
    cohort: Annotated[tuple[Entry, ...], Meta(max_length=MOST_CLIENTS)]
    neighbours: Annotated[dict[Name, Advert], Meta(max_length=MOST_CLIENTS)]
    threshold: Count


class Pairing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the one of a pair that comes first by name adds, so that both share a mask.

    Attributes:
        ciphertext: ML-KEM-768 encapsulation for the other's mask key.
        escrow: The encapsulated secret, sealed under the sender's own mask seed: whoever recovers that seed has the mask.
    """

    ciphertext: Ciphertext
    escrow: Annotated[bytes, Meta(min_length=48, max_length=48)]


class Parcel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client sends to a neighbour by way of the server.

    Attributes:
        ciphertext: ML-KEM-768 encapsulation for the receiver's channel key.
        sealed: Shares of the sender's mask seed and of its self-mask's seed, ChaCha20-Poly1305.
        pairing: From the first of the two by name; None from the other.
    """

    ciphertext: Ciphertext
    sealed: Annotated[bytes, Meta(min_length=2 * SHARE_BYTES + 16, max_length=2 * SHARE_BYTES + 16)]
    pairing: Pairing | None


class Shares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A client's parcels, by neighbour; the SHA-256 of its self-mask's seed, by which a recovered one is known."""

    round: Round
    parcels: Annotated[dict[Name, Parcel], Meta(max_length=MOST_CLIENTS)]
    commitment: Digest


class Delivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The parcels of those neighbours that sent some."""

    round: Round
    parcels: Annotated[dict[Name, Parcel], Meta(max_length=MOST_CLIENTS)]


class Masked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A masked update, packed."""

    round: Round
    data: bytes


class Survivors(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Whose masked updates the server has: the sum will be theirs."""

    round: Round
    names: Names


class Agreed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A client's signature over run, round, cohort and survivors."""

    round: Round
    signature: Signature


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Signatures of as many of the receiver's neighbours as it asks for."""

    round: Round
    signatures: Annotated[dict[Name, Signature], Meta(max_length=MOST_CLIENTS)]


class Reveal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Shares, by neighbour that dealt them: each name is in one of the two.

    Attributes:
        self_masks: For survivors.
        mask_keys: For those who sent parcels and no masked update.
    """

    round: Round
    self_masks: Annotated[dict[Name, Share], Meta(max_length=MOST_CLIENTS)]
    mask_keys: Annotated[dict[Name, Share], Meta(max_length=MOST_CLIENTS)]


FromClient: TypeAlias = Advert | Shares | Masked | Agreed | Reveal
FromServer: TypeAlias = Invitation | Delivery | Survivors | Agreement
Message: TypeAlias = FromClient | FromServer

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def encode(message: msgspec.Struct) -> bytes:
    """The bytes of a message; equal messages have equal bytes."""
    return _ENCODER.encode(message)


def decode(data: bytes | bytearray | memoryview, among: object, limit: int) -> Any:
    """The message in `data`, which must be one of `among` and nothing besides.

    Args:
        data: Bytes from the peer.
        among: A message type or a union of them, such as `FromClient`.
        limit: Largest accepted size in bytes.

    Raises:
        ProtocolViolation: for anything else.
    """
    size = memoryview(data).nbytes
    if size > limit:
        raise ProtocolViolation(f"the peer sent a message of {size} bytes; at most {limit} are allowed")
    try:
        return _decoder(among).decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolViolation("the peer sent a malformed message of a secure sum") from None


@cache
def _decoder(among: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(among)
