"""Who takes part in a round of encrypted updates, and all that follows from it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from koinon.core.types import ClientId
from koinon.secure import graph
from koinon.secure.encrypted.messages import Proposal, SeedLetter, Sent
from koinon.secure.encrypted.packing import Packing
from koinon.secure.encrypted.parameters import Parameters
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.keys import Setting, derived, text
from koinon.secure.messages import Entry, PublicKeys, encode
from koinon.secure.ring import Ring


@dataclass(frozen=True)
class Circle:
    """A round's clients, in the order of a hash of everybody's keys.

    Attributes:
        run: Id of the run.
        round: Round number, from 1.
        digests: SHA-256 of each client's keys.
        scheme: What is run.
        length: D, coordinates of an update.
    """

    run: str
    round: int
    digests: Mapping[ClientId, bytes]
    scheme: EncryptedSum
    length: int

    @classmethod
    def of(cls, run: str, round: int, scheme: EncryptedSum, length: int, entries: Iterable[Entry]) -> "Circle":
        """Those who said hello.

        Raises:
            AdmissionError: if the scheme cannot work among so many.
        """
        digests = {entry.name: entry.keys for entry in entries}
        scheme.admit(len(digests))
        return cls(run, round, digests, scheme, length)

    @cached_property
    def order(self) -> tuple[ClientId, ...]:
        """Everybody."""
        return graph.order(self.run, self.round, self.digests)

    @property
    def dealer(self) -> ClientId:
        """Who makes the round's key: the first opener."""
        return self.order[0]

    @property
    def openers(self) -> tuple[ClientId, ...]:
        """Who have the round's key, and one mask's seeds."""
        return self.order[: self.scheme.committee(len(self.digests))]

    @property
    def keepers(self) -> tuple[ClientId, ...]:
        """Who have the other mask's seeds."""
        size = self.scheme.committee(len(self.digests))
        return self.order[size : 2 * size]

    @property
    def committees(self) -> tuple[ClientId, ...]:
        """Both."""
        return (*self.openers, *self.keepers)

    @property
    def quorum(self) -> int:
        """How many must sign."""
        return self.scheme.quorum(len(self.digests))

    @property
    def ring(self) -> Ring:
        """How updates are encoded."""
        return self.scheme.ring(len(self.digests), self.length)

    @property
    def packing(self) -> Packing:
        """How they lie in the slots of ciphertexts."""
        return Packing(self.ring)

    @property
    def parameters(self) -> Parameters:
        """Of the encryption."""
        return Parameters.of(len(self.digests), self.scheme.mixing)

    @cached_property
    def setting(self) -> Setting:
        """What the round's secrets and signatures are bound to."""
        keys = (part for name, digest in sorted(self.digests.items()) for part in (name, digest))
        return Setting(self.run, self.round, hashlib.sha256(text("koinon.encrypted.cohort.1", *keys)).digest())

    def mask(self, seed: bytes, name: ClientId, committee: Literal["openers", "keepers"]) -> bytes:
        """The seed of the mask that a client wears for one committee."""
        return derived(seed, self.setting.bound("koinon.encrypted.mask.1", name, committee))

    def to_deal(self, public: bytes) -> bytes:
        """What the dealer signs."""
        return self.setting.bound("koinon.encrypted.key.1", self.dealer, hashlib.sha256(public).digest())

    def secret_letter(self, receiver: ClientId, public: bytes) -> bytes:
        """What the letter with the secret key is bound to."""
        return self.setting.bound("koinon.encrypted.secret.1", self.dealer, receiver, hashlib.sha256(public).digest())

    def seed_letter(self, sender: ClientId, receiver: ClientId) -> bytes:
        """What a letter with a mask's seed is bound to."""
        return self.setting.bound("koinon.encrypted.seed.1", sender, receiver)

    def to_send(self, name: ClientId, public: bytes, update: bytes, letters: Mapping[ClientId, bytes]) -> bytes:
        """What a client signs of its encrypted update.

        Args:
            update: SHA-256 of the ciphertexts.
            letters: SHA-256 of each letter.
        """
        parts = (part for receiver, digest in sorted(letters.items()) for part in (receiver, digest))
        key = hashlib.sha256(public).digest()
        return self.setting.bound("koinon.encrypted.sent.1", name, key, update, *parts)

    def to_agree(self, proposal: Proposal) -> bytes:
        """What a survivor signs."""
        rows = sorted(proposal.survivors.items())
        parts = (part for name, row in rows for part in (name, row.sent, str(row.weight)))
        return self.setting.bound("koinon.encrypted.survivors.1", *parts)


def keys_digest(keys: PublicKeys) -> bytes:
    """SHA-256 of a client's keys of the round."""
    return hashlib.sha256(text("koinon.encrypted.keys.1", encode(keys))).digest()


def to_greet(run: str, round: int, name: ClientId, digest: bytes) -> bytes:
    """What a client signs when it says hello with keys of such a digest."""
    return text("koinon.encrypted.hello.1", run, str(round), name, digest)


def letter_digests(letters: Mapping[ClientId, SeedLetter]) -> dict[ClientId, bytes]:
    """SHA-256 of each."""
    return {name: hashlib.sha256(encode(letter)).digest() for name, letter in letters.items()}


def sent_digest(sent: Sent) -> bytes:
    """SHA-256 of what a client has sent, by which a proposal names it."""
    return statement(sent.update, letter_digests(sent.letters))


def statement(update: bytes, letters: Mapping[ClientId, bytes]) -> bytes:
    """The same, from the digests."""
    parts = (part for name, digest in sorted(letters.items()) for part in (name, digest))
    return hashlib.sha256(text("koinon.encrypted.statement.1", update, *parts)).digest()
