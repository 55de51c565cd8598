"""Keys of one round, the secrets that two clients make of them, and what is sealed under these.

A client has two ephemeral key pairs, each X25519 *and* ML-KEM-768, so that an attacker must break both: a *channel* pair,
under which others seal shares for it and which nobody ever learns, and a *mask* pair, whose seed the server recovers when
the client falls silent. A secret is HKDF-SHA256 of both agreements, bound to run, round, cohort (and with it to every
advertised key), both names in order, and the ciphertext.

In ML-KEM only one side chooses: the first of a pair by name encapsulates for the other's mask key. The server must have the
mask when either of the two falls silent; from the second one's seed it decapsulates, and for the first one the encapsulated
secret lies in *escrow*, sealed under the first one's own seed. Nothing is kept from round to round: an agreement takes 0.1 ms.

Every derived key seals one message, so nonces may be zero. `cryptography` draws the randomness of an encapsulation itself,
from the operating system: it is the one draw that no `entropy` argument decides.

Sources: Bonawitz et al., "Practical secure aggregation" (2017), §4; NIST FIPS 203; RFC 5869, 7748, 8032, 8439. As in X-Wing
(draft-connolly-cfrg-xwing-kem), the classical public keys enter the derivation.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from koinon.core.errors import ProtocolViolation
from koinon.core.types import ClientId
from koinon.secure.messages import Advert, Pairing, Parcel, PublicKeys, encode
from koinon.secure.shamir import SHARE_BYTES

_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class Setting:
    """What every derived secret of a round is bound to: the run, the round, and the digest of the cohort."""

    run: str
    round: int
    cohort: bytes

    def bound(self, purpose: str, *parts: str | bytes) -> bytes:
        """Text that no other purpose, round or parts give."""
        return text(purpose, self.run, str(self.round), self.cohort, *parts)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 and an ML-KEM-768 private key, both of one 32-byte seed."""

    seed: bytes = field(repr=False)
    x25519: X25519PrivateKey = field(repr=False)
    mlkem: MLKEM768PrivateKey = field(repr=False)

    @classmethod
    def of(cls, seed: bytes) -> "KeyPair":
        """The pair of a seed."""
        material = derived(seed, text("koinon.secure.keypair.1"), 96)
        return cls(
            seed, X25519PrivateKey.from_private_bytes(material[:32]), MLKEM768PrivateKey.from_seed_bytes(material[32:])
        )

    @property
    def public(self) -> PublicKeys:
        """What others need of it."""
        return PublicKeys(self.x25519.public_key().public_bytes_raw(), self.mlkem.public_key().public_bytes_raw())

    def agree(self, other: PublicKeys) -> bytes:
        """The X25519 half of a secret."""
        try:
            return self.x25519.exchange(X25519PublicKey.from_public_bytes(other.x25519))
        except ValueError:
            raise ProtocolViolation("a neighbour advertised an X25519 key of small order") from None

    def opened(self, ciphertext: bytes) -> bytes:
        """The ML-KEM half of a secret that someone encapsulated for it; another secret if it was not for it."""
        return self.mlkem.decapsulate(ciphertext)


def keys_digest(channel: PublicKeys, mask: PublicKeys) -> bytes:
    """SHA-256 of a client's advertised keys."""
    return hashlib.sha256(text("koinon.secure.keys.1", encode(channel), encode(mask))).digest()


def to_sign(run: str, round: int, name: ClientId, digest: bytes) -> bytes:
    """What a client signs when it advertises keys of such a digest."""
    return text("koinon.secure.advert.1", run, str(round), name, digest)


def verified(trusted: Mapping[ClientId, bytes], name: ClientId, data: bytes, signature: bytes) -> None:
    """Return if the identity that is trusted by that name signed the data.

    Raises:
        ProtocolViolation: otherwise.
    """
    key = trusted.get(name)
    if key is None:
        raise ProtocolViolation(f"{name} is nobody whom this node trusts")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise ProtocolViolation(f"{name} did not sign what is said to be of {name}") from None


def sealed(
    setting: Setting,
    own: KeyPair,
    names: tuple[ClientId, ClientId],
    advert: Advert,
    plain: bytes,
    pairing: Pairing | None,
) -> Parcel:
    """A parcel from the first of `names` to the second, who advertised `advert`."""
    secret, ciphertext = _encapsulated(advert.channel)
    key = _channel_key(setting, own.agree(advert.channel), secret, names, ciphertext)
    return Parcel(
        ciphertext, ChaCha20Poly1305(key).encrypt(_NONCE, plain, _sealed_with(setting, names, pairing)), pairing
    )


def letter(own: KeyPair, receiver: PublicKeys, bound: bytes, plain: bytes) -> tuple[bytes, bytes]:
    """A secret sealed for the holder of `receiver` under a pair that is made for it alone: encapsulation, and ciphertext."""
    secret, ciphertext = _encapsulated(receiver)
    key = derived(own.agree(receiver) + secret, text("koinon.secure.letter.1", bound, own.public.x25519, ciphertext))
    return ciphertext, ChaCha20Poly1305(key).encrypt(_NONCE, plain, bound)


def unsealed(own: KeyPair, x25519: bytes, ciphertext: bytes, bound: bytes, sealed: bytes) -> bytes:
    """What a letter for `own` says.

    Raises:
        ProtocolViolation: if it is for somebody else, bound to something else, or was changed on its way.
    """
    agreed = own.agree(PublicKeys(x25519, b""))
    key = derived(agreed + own.opened(ciphertext), text("koinon.secure.letter.1", bound, x25519, ciphertext))
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, bound)
    except InvalidTag:
        raise ProtocolViolation(
            "a letter does not open: it was sealed for somebody else, or changed on its way"
        ) from None


def opened(setting: Setting, own: KeyPair, names: tuple[ClientId, ClientId], advert: Advert, parcel: Parcel) -> bytes:
    """What the first of `names`, who advertised `advert`, sealed for the second.

    Raises:
        ProtocolViolation: if it was sealed by or for somebody else, in another round, or was changed on its way.
    """
    secret = own.opened(parcel.ciphertext)
    key = _channel_key(setting, own.agree(advert.channel), secret, names, parcel.ciphertext)
    try:
        plain = ChaCha20Poly1305(key).decrypt(_NONCE, parcel.sealed, _sealed_with(setting, names, parcel.pairing))
    except InvalidTag:
        raise ProtocolViolation(f"the parcel from {names[0]} was not sealed by {names[0]} for {names[1]}") from None
    if len(plain) != 2 * SHARE_BYTES:
        raise ProtocolViolation(f"the parcel from {names[0]} does not hold two shares")
    return plain


def paired(setting: Setting, own: KeyPair, second: ClientId, advert: Advert) -> Pairing:
    """What the first of a pair, whose mask keys are `own`, sends to the second, who advertised `advert`."""
    secret, ciphertext = _encapsulated(advert.mask)
    escrow = ChaCha20Poly1305(_escrow_key(setting, own, second)).encrypt(_NONCE, secret, ciphertext)
    return Pairing(ciphertext, escrow)


def pair_seed(
    setting: Setting, own: KeyPair, names: tuple[ClientId, ClientId], advert: Advert, pairing: Pairing
) -> bytes:
    """The seed of a pair's mask, from the mask keys of either one.

    Args:
        own: The mask keys of the first of `names`.
        advert: What the second of `names` advertised.
        pairing: What the first of the two in order sent.

    Raises:
        ProtocolViolation: if the escrow was not made with that seed.
    """
    name, other = names
    if name > other:
        secret = own.opened(pairing.ciphertext)
    else:
        try:
            cipher = ChaCha20Poly1305(_escrow_key(setting, own, other))
            secret = cipher.decrypt(_NONCE, pairing.escrow, pairing.ciphertext)
        except InvalidTag:
            raise ProtocolViolation(f"{name} left a false escrow for its mask with {other}") from None
    return _mask_seed(setting, own.agree(advert.mask), secret, min(names), max(names), pairing.ciphertext)


def self_mask_seed(setting: Setting, seed: bytes, name: ClientId) -> bytes:
    """The seed of the mask that a client adds for itself alone."""
    return derived(seed, setting.bound("koinon.secure.selfmask.1", name))


def commitment(seed: bytes) -> bytes:
    """By which a recovered self-mask's seed is known; 256 random bits are not found from it."""
    return hashlib.sha256(text("koinon.secure.commitment.1", seed)).digest()


def _encapsulated(keys: PublicKeys) -> tuple[bytes, bytes]:
    try:
        return MLKEM768PublicKey.from_public_bytes(keys.mlkem).encapsulate()
    except ValueError:
        raise ProtocolViolation("a neighbour advertised 1184 bytes that are no ML-KEM-768 key") from None


def _channel_key(
    setting: Setting, agreed: bytes, secret: bytes, names: tuple[ClientId, ClientId], ciphertext: bytes
) -> bytes:
    return derived(agreed + secret, setting.bound("koinon.secure.channel.1", *names, ciphertext))


def _mask_seed(
    setting: Setting, agreed: bytes, secret: bytes, first: ClientId, second: ClientId, ciphertext: bytes
) -> bytes:
    return derived(agreed + secret, setting.bound("koinon.secure.mask.1", first, second, ciphertext))


def _escrow_key(setting: Setting, own: KeyPair, other: ClientId) -> bytes:
    return derived(own.seed, setting.bound("koinon.secure.escrow.1", other))


def _sealed_with(setting: Setting, names: tuple[ClientId, ClientId], pairing: Pairing | None) -> bytes:
    """Associated data: who sends to whom in which round, and the pairing, which is not secret and must not be changed."""
    return setting.bound("koinon.secure.parcel.1", *names, b"" if pairing is None else encode(pairing))


def derived(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """Bytes that follow from a secret and from what they are for."""
    return HKDF(SHA256(), length, salt=None, info=info).derive(secret)


def text(*parts: str | bytes) -> bytes:
    """Parts, each behind its length, so that no two sequences of parts have equal bytes."""
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(8, "little") + part for part in raw)
