"""What happens to the two state machines of a sum of encrypted updates beyond `koinon.secure.events`, and what they ask for.

What is heavy or draws randomness of its own is asked of the caller, each job for any thread: a `Made…` or `Encrypted` event
brings the result back. A caller that lost a result does the job again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from koinon.core.types import ClientId
from koinon.secure.encrypted.messages import FromClient, FromServer
from koinon.secure.encrypted.opening import Opening
from koinon.secure.encrypted.packing import Slots
from koinon.secure.encrypted.parameters import Parameters
from koinon.secure.events import (
    Abort,
    Begin,
    Contribute,
    Elapsed,
    Heard,
    Keep,
    Open,
    Received,
    Refuse,
    Returned,
    Say,
    Stored,
    Tell,
    Want,
)


@dataclass(frozen=True, slots=True)
class MakeKeys:
    """Make a pair of keys of CKKS, by `ckks.keys`; `KeysMade` brings it."""

    round: int


@dataclass(frozen=True, slots=True)
class KeysMade:
    """A new pair of keys."""

    round: int
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Encrypt:
    """Encrypt these words by `ckks.encrypted` and make the ciphertexts durable; `Encrypted` says so."""

    round: int
    parameters: Parameters
    public: bytes
    words: Slots = field(repr=False)


@dataclass(frozen=True, slots=True)
class Encrypted:
    """The ciphertexts are durable, one after the other; their SHA-256."""

    round: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Decrypt:
    """Fetch the sum's ciphertexts from the server and decrypt them by `ckks.decrypted`; `Decrypted` brings the words.

    What does not have this digest or does not decrypt ends the client's part in the round.

    Attributes:
        round: The round.
        parameters: Of the sum.
        secret: The round's key.
        digest: SHA-256 of the ciphertexts, one after the other.
        count: W, words.
    """

    round: int
    parameters: Parameters
    secret: bytes = field(repr=False)
    digest: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Decrypted:
    """What the sum with this digest holds; uint32 `[W]`, which is not changed."""

    round: int
    digest: bytes
    words: Slots = field(repr=False)


@dataclass(frozen=True, slots=True)
class Add:
    """Add up the encrypted updates of these clients, each times its weight, by `ckks.added`; `Added` says so."""

    parameters: Parameters
    weights: Mapping[ClientId, int]


@dataclass(frozen=True, slots=True)
class Added:
    """The ciphertexts of the sum are durable, and openers can fetch them; their SHA-256."""

    digest: bytes


ClientEvent: TypeAlias = Begin | Heard[FromServer] | Contribute | KeysMade | Encrypted | Decrypted
ClientEffect: TypeAlias = Say[FromClient] | Want | MakeKeys | Encrypt | Decrypt
ServerEvent: TypeAlias = Received[FromClient] | Stored | Returned | Elapsed | Added
ServerEffect: TypeAlias = Tell[FromServer] | Keep | Add | Open[Opening] | Refuse | Abort
