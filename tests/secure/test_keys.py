"""Keys, agreements, parcels."""

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from koinon.core.errors import ProtocolViolation
from koinon.secure.keys import KeyPair, Setting, opened, pair_seed, paired, sealed, self_mask_seed
from koinon.secure.messages import Advert, PublicKeys

SETTING = Setting("run", 3, bytes(32))


def client(letter):
    channel, mask = KeyPair.of(letter * 32), KeyPair.of(letter.upper() * 32)
    return channel, mask, Advert(3, channel.public, mask.public, bytes(64))


A, B, C = client(b"a"), client(b"b"), client(b"c")


def test_both_sides_and_either_seed_give_one_mask():
    pairing = paired(SETTING, A[1], "b", B[2])
    first = pair_seed(SETTING, A[1], ("a", "b"), B[2], pairing)
    assert first == pair_seed(SETTING, B[1], ("b", "a"), A[2], pairing)
    assert first != pair_seed(SETTING, C[1], ("c", "a"), A[2], pairing)
    again = paired(SETTING, A[1], "b", B[2])
    assert pair_seed(SETTING, A[1], ("a", "b"), B[2], again) != first


@pytest.mark.parametrize(
    "other", [Setting("other", 3, bytes(32)), Setting("run", 4, bytes(32)), Setting("run", 3, b"1" * 32)]
)
def test_secrets_are_bound_to_run_round_and_cohort(other):
    pairing = paired(SETTING, A[1], "b", B[2])
    assert pair_seed(other, B[1], ("b", "a"), A[2], pairing) != pair_seed(SETTING, B[1], ("b", "a"), A[2], pairing)
    with pytest.raises(ProtocolViolation, match="escrow"):
        pair_seed(other, A[1], ("a", "b"), B[2], pairing)
    parcel = sealed(SETTING, A[0], ("a", "b"), B[2], bytes(66), None)
    with pytest.raises(ProtocolViolation, match="not sealed"):
        opened(other, B[0], ("a", "b"), A[2], parcel)
    assert self_mask_seed(other, bytes(32), "a") != self_mask_seed(SETTING, bytes(32), "a")


def test_a_parcel_opens_for_its_receiver_alone():
    parcel = sealed(SETTING, A[0], ("a", "b"), B[2], bytes(range(66)), None)
    assert opened(SETTING, B[0], ("a", "b"), A[2], parcel) == bytes(range(66))
    for own, names, advert in ((C[0], ("a", "c"), A[2]), (B[0], ("c", "b"), C[2]), (A[0], ("b", "a"), B[2])):
        with pytest.raises(ProtocolViolation, match="not sealed"):
            opened(SETTING, own, names, advert, parcel)


def test_both_agreements_are_needed():
    """With one of the two keys in hand, and the other agreement guessed, a parcel stays closed."""
    parcel = sealed(SETTING, A[0], ("a", "b"), B[2], bytes(66), None)
    halves = {"x25519": B[0].agree(A[2].channel), "mlkem": B[0].opened(parcel.ciphertext)}
    assert opened(SETTING, B[0], ("a", "b"), A[2], parcel) == bytes(66)
    mixed = KeyPair(B[0].seed, C[0].x25519, B[0].mlkem), KeyPair(B[0].seed, B[0].x25519, C[0].mlkem)
    for own in mixed:
        with pytest.raises(ProtocolViolation, match="not sealed"):
            opened(SETTING, own, ("a", "b"), A[2], parcel)
    assert len({*halves.values()}) == 2


def test_the_derivation_is_hkdf_of_both_and_the_seal_chacha20_poly1305():
    """The same bytes from the primitives alone, written out once more."""
    parcel = sealed(SETTING, A[0], ("a", "b"), B[2], bytes(range(66)), None)
    text = lambda *parts: b"".join(len(part).to_bytes(8, "little") + part for part in parts)  # noqa: E731
    bound = (b"run", b"3", bytes(32), b"a", b"b")
    info = text(b"koinon.secure.channel.1", *bound, parcel.ciphertext)
    material = B[0].agree(A[2].channel) + B[0].opened(parcel.ciphertext)
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(material)
    plain = ChaCha20Poly1305(key).decrypt(bytes(12), parcel.sealed, text(b"koinon.secure.parcel.1", *bound, b""))
    assert plain == bytes(range(66))


def test_key_pairs_follow_from_their_seeds():
    """A known answer, so that no version of a library changes it unseen: recovered seeds are compared to adverts."""
    public = KeyPair.of(bytes(range(32))).public
    digest = hashlib.sha256(public.x25519 + public.mlkem).hexdigest()
    assert digest == KNOWN_KEYS
    assert KeyPair.of(bytes(range(32))).public == public != KeyPair.of(bytes(32)).public


KNOWN_KEYS = "3eeebff2c899aedbf3ed4b4413afe3d7bedce4e9e13ea7a40b4513cffac95d22"


@pytest.mark.parametrize("x25519", [bytes(32), b"\1" + bytes(31)])
def test_a_key_of_small_order_is_refused(x25519):
    with pytest.raises(ProtocolViolation, match="small order"):
        A[0].agree(PublicKeys(x25519, B[2].channel.mlkem))


def test_what_is_no_ml_kem_key_is_refused():
    bad = Advert(3, PublicKeys(B[2].channel.x25519, b"\xff" * 1184), B[2].mask, bytes(64))
    with pytest.raises(ProtocolViolation, match="no ML-KEM-768 key"):
        sealed(SETTING, A[0], ("a", "b"), bad, bytes(66), None)


def test_secrets_are_not_shown():
    assert "97" not in repr(A[0]) and "aaaa" not in repr(A[0])
