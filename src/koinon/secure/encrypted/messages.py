"""What clients and the server say to each other in a sum of encrypted updates: typed, frozen, of bounded size.

A round, the client on the left:

    Hello         ->                  public keys of the round, signed
                  <-  Gathering       to the dealer: everybody's signed key digests, the committees' keys
    Dealt         ->                  the dealer's public key of CKKS, signed; the secret one, sealed for each opener
                  <-  Keys            to everybody: the gathering, the public key, to openers their letter
    Sent          ->                  the digest of the encrypted update, seeds of its masks sealed for the committees, signed
                  <-  Proposal        whose updates are in, what each has sent, and by what the server multiplies them
    Agreed        ->                  the client's signature over just these
                  <-  Mandate         to the committees: the signatures, what was sent, to openers the sum's digest
    Answer        ->                  the sum without the openers' masks; the sum of the keepers' masks

Encrypted updates, their sum and answers are large: they go another way, and only their digests are said here. In one process
an `Answer` takes its bytes along.
"""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from koinon.secure.encrypted.parameters import PUBLIC_BYTES, SECRET_BYTES
from koinon.secure.messages import MOST_CLIENTS, Agreed, Ciphertext, Digest, Entry, Name, PublicKeys, Round, Signature
from koinon.secure.shamir import SEED_BYTES

TAG_BYTES = 16
X25519: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Weight: TypeAlias = Annotated[int, Meta(ge=1, lt=2**31)]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A client takes part: keys under which others seal for it, signed by its identity."""

    round: Round
    keys: PublicKeys
    signature: Signature


class Gathering(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Who takes part. The committees follow from it.

    Attributes:
        cohort: Everybody, by name.
        committees: Keys of those in either committee.
    """

    round: Round
    cohort: Annotated[tuple[Entry, ...], Meta(max_length=MOST_CLIENTS)]
    committees: Annotated[dict[Name, PublicKeys], Meta(max_length=MOST_CLIENTS)]


class SecretLetter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A secret key of CKKS, sealed: the sender's X25519 key, ML-KEM-768 encapsulation, ChaCha20-Poly1305."""

    x25519: X25519
    ciphertext: Ciphertext
    sealed: Annotated[bytes, Meta(min_length=SECRET_BYTES + TAG_BYTES, max_length=SECRET_BYTES + TAG_BYTES)]


class SeedLetter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mask's seed, sealed in the same way."""

    x25519: X25519
    ciphertext: Ciphertext
    sealed: Annotated[bytes, Meta(min_length=SEED_BYTES + TAG_BYTES, max_length=SEED_BYTES + TAG_BYTES)]


class Dealt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The key of the round.

    Attributes:
        public: A public key of CKKS.
        letters: The secret key, for every opener but the dealer.
        signature: By the dealer's identity, over run, round, cohort and the public key.
    """

    round: Round
    public: Annotated[bytes, Meta(min_length=PUBLIC_BYTES, max_length=PUBLIC_BYTES)]
    letters: Annotated[dict[Name, SecretLetter], Meta(max_length=MOST_CLIENTS)]
    signature: Signature


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Who takes part, and what the dealer dealt; the letter of an opener that is not the dealer."""

    round: Round
    gathering: Gathering
    public: Annotated[bytes, Meta(min_length=PUBLIC_BYTES, max_length=PUBLIC_BYTES)]
    signature: Signature
    letter: SecretLetter | None = None


class Sent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A client's encrypted update is on its way.

    Attributes:
        update: SHA-256 of its ciphertexts, one after the other.
        letters: For everybody in a committee, the seed of the mask that this committee will take away.
        signature: By the client's identity, over run, round, cohort, public key and both of these.
    """

    round: Round
    update: Digest
    letters: Annotated[dict[Name, SeedLetter], Meta(max_length=MOST_CLIENTS)]
    signature: Signature


class Proposed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One survivor: SHA-256 of what it has sent, and the whole number that its ciphertexts are multiplied by."""

    sent: Digest
    weight: Weight = 1


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Whose encrypted updates the server has: the sum will be theirs."""

    round: Round
    survivors: Annotated[dict[Name, Proposed], Meta(max_length=MOST_CLIENTS)]


class Forwarded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a survivor has sent, for one receiver.

    Attributes:
        update: As in `Sent`.
        letters: SHA-256 of each letter of it, by receiver, as they were signed.
        letter: The receiver's own.
        signature: As in `Sent`.
    """

    update: Digest
    letters: Annotated[dict[Name, Digest], Meta(max_length=MOST_CLIENTS)]
    letter: SeedLetter
    signature: Signature


class Mandate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """To somebody in a committee: open the sum.

    Attributes:
        signatures: Of survivors, over the proposal.
        sent: What all survivors have sent.
        total: SHA-256 of the added ciphertexts, to openers.
    """

    round: Round
    signatures: Annotated[dict[Name, Signature], Meta(max_length=MOST_CLIENTS)]
    sent: Annotated[dict[Name, Forwarded], Meta(max_length=MOST_CLIENTS)]
    total: Digest | None = None


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Words modulo 2**32, little-endian: of an opener the sum without its committee's masks, of a keeper its masks' sum."""

    round: Round
    data: bytes


FromClient: TypeAlias = Hello | Dealt | Sent | Agreed | Answer
FromServer: TypeAlias = Gathering | Keys | Proposal | Mandate
