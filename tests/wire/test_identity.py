import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.errors import AdmissionError, ProtocolViolation, Unavailable
from koinon.wire.identity import Identity, key_text, parse_key, verify

ONE = Identity.generate()


def test_a_saved_identity_is_loaded_again_and_is_the_owners_alone(tmp_path):
    path = tmp_path / "identity.pem"
    before = os.umask(0)
    try:
        ONE.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path).key == ONE.key


def test_an_identity_is_never_overwritten(tmp_path):
    path = tmp_path / "identity.pem"
    ONE.save(path)
    with pytest.raises(Unavailable, match="never overwritten"):
        Identity.generate().save(path)
    assert Identity.load(path).key == ONE.key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_an_identity_open_to_others_is_refused(tmp_path, mode):
    path = tmp_path / "identity.pem"
    ONE.save(path)
    path.chmod(mode)
    with pytest.raises(Unavailable, match="chmod 600"):
        Identity.load(path)


def test_what_is_no_identity_is_refused_with_a_cure(tmp_path):
    with pytest.raises(Unavailable, match="koinon enroll"):
        Identity.load(tmp_path / "missing.pem")
    with pytest.raises(Unavailable, match="cannot be read"):
        Identity.load(tmp_path)
    with pytest.raises(Unavailable, match="cannot be written"):
        ONE.save(tmp_path / "missing" / "identity.pem")
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for number, text in enumerate((b"", b"garbage", other)):
        path = tmp_path / f"{number}.pem"
        path.write_bytes(text)
        path.chmod(0o600)
        with pytest.raises(Unavailable, match="no unencrypted Ed25519 key"):
            Identity.load(path)


@given(st.binary(), st.integers(0, 511))
def test_a_signature_holds_for_its_data_and_key_alone(data, bit):
    signature = ONE.sign(data)
    verify(ONE.key, data, signature)
    flipped = (int.from_bytes(signature, "big") ^ (1 << bit)).to_bytes(64, "big")
    wrong = [(ONE.key, data + b"\0", signature), (ONE.key, data, flipped), (Identity.generate().key, data, signature)]
    for arguments in (*wrong, (ONE.key, data, b""), (bytes(5), data, signature)):
        with pytest.raises(ProtocolViolation):
            verify(*arguments)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_survives_its_text(key):
    text = key_text(key)
    assert parse_key(text) == key
    assert len(text) == 51


@given(st.text() | st.text("abcdefghijklmnopqrstuvwxyzABC-_=", min_size=40, max_size=45).map("ed25519:".__add__))
def test_other_text_is_no_key_or_the_only_text_of_that_key(text):
    try:
        assert key_text(parse_key(text)) == text
    except AdmissionError as error:
        assert "is no public key" in str(error)


def test_a_key_without_its_prefix_is_refused():
    with pytest.raises(AdmissionError):
        parse_key(key_text(ONE.key).removeprefix("ed25519:"))
