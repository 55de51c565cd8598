"""A secure sum by two servers that do not work together: one has the masked updates, the other the masks.

Every client sends its masked update to the first server, and to the second one the 32 bytes that its mask is made of, sealed
so that only that one can read them. Neither learns anything of an update by itself. The first says whose updates it has, the
second answers with the sum of their masks, once in a round: what is left is the sum of the updates.

A client says one thing and is done: nobody waits for neighbours, and who falls silent is simply not in the sum. In return
the two servers must not tell each other more than this: together they know every update. Give them to two organisations
that would not.

What each can and cannot do, as long as the other is honest:

- the first chooses, once in a round, of which clients it learns the sum, `minimum` or more;
- the second learns who takes part; by a wrong mask it can spoil a sum, which is found out unless it knows the updates;
- a client that seals another seed than it masked with spoils the sum, which is found out; nobody knows who it was.

Source: the split of Prio (Corrigan-Gibbs and Boneh, 2017) without its proofs, one share compressed to a seed.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from koinon.core.errors import ProtocolViolation
from koinon.core.types import ClientId
from koinon.secure import keys
from koinon.secure.keys import KeyPair, text
from koinon.secure.mask import Words, add_masks
from koinon.secure.messages import Ciphertext, Digest, PublicKeys, Round, Signature
from koinon.secure.ring import Ring
from koinon.secure.shamir import SEED_BYTES, Entropy

Sealed = Annotated[bytes, Meta(min_length=SEED_BYTES + 16, max_length=SEED_BYTES + 16)]


class HalfMasked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For the first server: a masked update, and the client's signature over round, name and its SHA-256."""

    round: Round
    data: bytes
    signature: Signature


class HalfSeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For the second server.

    Attributes:
        masked: SHA-256 of the masked update that the seed belongs to.
        x25519: A key made for this letter.
        ciphertext: ML-KEM-768 encapsulation for the second server's key.
        sealed: The mask's seed, ChaCha20-Poly1305.
        signature: By the client's identity, the same as beside the masked update.
    """

    round: Round
    masked: Digest
    x25519: Annotated[bytes, Meta(min_length=32, max_length=32)]
    ciphertext: Ciphertext
    sealed: Sealed
    signature: Signature


@dataclass(frozen=True)
class Roles:
    """What clients and both servers know alike.

    Attributes:
        run: Id of the run.
        trusted: Clients' identity keys, by name.
        second: The second server's public keys, which clients have from someone other than the first server.
        ring: How updates are encoded.
        minimum: Fewest clients whose sum is opened.
    """

    run: str
    trusted: Mapping[ClientId, bytes]
    second: PublicKeys
    ring: Ring
    minimum: int


def contributed(
    roles: Roles, round: int, name: ClientId, sign: Callable[[bytes], bytes], encoded: Words, entropy: Entropy
) -> tuple[HalfMasked, HalfSeed]:
    """Both halves of a client's update; a fresh mask for every call, so what was made is kept until it was sent."""
    seed = entropy(SEED_BYTES)
    data = roles.ring.pack(add_masks(encoded.copy(), [_mask(roles, round, name, seed)], []))
    masked = hashlib.sha256(data).digest()
    signature = sign(_to_sign(roles, round, name, masked))
    own = KeyPair.of(entropy(SEED_BYTES))
    bound = _bound(roles, round, name, masked)
    ciphertext, sealed = keys.letter(own, roles.second, bound, seed)
    return HalfMasked(round, data, signature), HalfSeed(round, masked, own.public.x25519, ciphertext, sealed, signature)


@dataclass(frozen=True)
class First:
    """The first server in a round.

    Attributes:
        roles: What all know alike.
        round: The round.
        masked: Masked updates, by client.
    """

    roles: Roles
    round: int
    masked: Mapping[ClientId, bytes] = field(default_factory=dict)

    def heard(self, name: ClientId, half: HalfMasked) -> "First":
        """A client's masked update.

        Raises:
            ProtocolViolation: if it is of another round or size, not the client's, or a second one.
        """
        if half.round != self.round:
            raise ProtocolViolation(f"a masked update of round {half.round}; this is round {self.round}")
        if len(half.data) != self.roles.ring.wire_bytes:
            raise ProtocolViolation(
                f"a masked update has {len(half.data)} bytes where {self.roles.ring.wire_bytes} were expected"
            )
        masked = hashlib.sha256(half.data).digest()
        keys.verified(self.roles.trusted, name, _to_sign(self.roles, self.round, name, masked), half.signature)
        if self.masked.get(name, half.data) != half.data:
            raise ProtocolViolation(f"a second, different masked update of {name} for round {self.round}")
        return First(self.roles, self.round, {**self.masked, name: half.data})

    def proposal(self) -> dict[ClientId, bytes]:
        """Whose updates are here, and the SHA-256 of each: what the second server is asked for."""
        return {name: hashlib.sha256(data).digest() for name, data in sorted(self.masked.items())}

    def opened(self, names: tuple[ClientId, ...], masks: bytes) -> Words:
        """The sum of these clients' encoded updates, from the sum of their masks.

        Raises:
            ProtocolViolation: if the second server names others than it was asked for, or too few.
        """
        if not set(names) <= self.masked.keys() or len(set(names)) < max(self.roles.minimum, len(names)):
            raise ProtocolViolation("the second server answers for other clients than it was asked for")
        total = self.roles.ring.zeros()
        for name in names:
            np.add(total, self.roles.ring.unpack(self.masked[name]), out=total)
        return np.subtract(total, self.roles.ring.unpack(masks), out=total)


@dataclass(frozen=True)
class Second:
    """The second server in a round; the caller makes it durable before an answer leaves.

    Attributes:
        roles: What all know alike.
        round: The round.
        own: Its keys.
        seeds: Seed of each client's mask, with the SHA-256 of the masked update that it belongs to.
        answered: What it was asked for, once it has answered.
    """

    roles: Roles
    round: int
    own: KeyPair = field(repr=False)
    seeds: Mapping[ClientId, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    answered: Mapping[ClientId, bytes] | None = None

    def heard(self, name: ClientId, half: HalfSeed) -> "Second":
        """A client's sealed seed.

        Raises:
            ProtocolViolation: if it is of another round, not the client's, cannot be opened, or is a second one.
        """
        if half.round != self.round:
            raise ProtocolViolation(f"a seed of round {half.round}; this is round {self.round}")
        keys.verified(self.roles.trusted, name, _to_sign(self.roles, self.round, name, half.masked), half.signature)
        bound = _bound(self.roles, self.round, name, half.masked)
        seed = keys.unsealed(self.own, half.x25519, half.ciphertext, bound, half.sealed)
        if self.seeds.get(name, (half.masked, seed)) != (half.masked, seed):
            raise ProtocolViolation(f"a second, different seed of {name} for round {self.round}")
        return Second(self.roles, self.round, self.own, {**self.seeds, name: (half.masked, seed)}, self.answered)

    def asked(self, proposal: Mapping[ClientId, bytes]) -> tuple["Second", tuple[ClientId, ...], bytes]:
        """The sum of the masks of those clients of whom both servers have the same: names, and the sum packed.

        Raises:
            ProtocolViolation: if it was asked for others in this round already, or there are too few.
        """
        if self.answered is not None and dict(self.answered) != dict(proposal):
            raise ProtocolViolation(f"the first server asks a second time in round {self.round}, for other clients")
        names = tuple(
            sorted(name for name, masked in proposal.items() if name in self.seeds and self.seeds[name][0] == masked)
        )
        if len(names) < self.roles.minimum:
            raise ProtocolViolation(
                f"both servers have {len(names)} clients' halves; the sum of fewer than {self.roles.minimum} is not opened"
            )
        masks = [_mask(self.roles, self.round, name, self.seeds[name][1]) for name in names]
        total = add_masks(self.roles.ring.zeros(), masks, [])
        return Second(self.roles, self.round, self.own, self.seeds, dict(proposal)), names, self.roles.ring.pack(total)


def _mask(roles: Roles, round: int, name: ClientId, seed: bytes) -> bytes:
    return keys.derived(seed, text("koinon.secure.two.mask.1", roles.run, str(round), name))


def _to_sign(roles: Roles, round: int, name: ClientId, masked: bytes) -> bytes:
    return text("koinon.secure.two.half.1", roles.run, str(round), name, masked)


def _bound(roles: Roles, round: int, name: ClientId, masked: bytes) -> bytes:
    return text("koinon.secure.two.seed.1", roles.run, str(round), name, masked)
