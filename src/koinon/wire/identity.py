"""Ed25519 identities: made where they are used, kept in a file that only the owner can read, named by their key."""

import base64
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from koinon.core.errors import AdmissionError, ProtocolViolation, Unavailable

_PREFIX = "ed25519:"


@dataclass(frozen=True)
class Identity:
    """A private Ed25519 key and what is done with it."""

    _private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> "Identity":
        """A new identity from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """The identity that `save` wrote.

        Raises:
            Unavailable: if the file is missing, unreadable, no Ed25519 key, or readable by other users.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read(1 << 16)
        except FileNotFoundError:
            raise Unavailable(f"there is no identity at {path}; make one by `koinon enroll`") from None
        except OSError as error:
            raise Unavailable(f"the identity {path} cannot be read: {error.strerror}") from None
        if mode & 0o077:
            raise Unavailable(f"the identity {path} is open to other users (mode {mode:o}); run `chmod 600 {path}`")
        try:
            private = serialization.load_pem_private_key(text, password=None)
        except (ValueError, TypeError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise Unavailable(
                f"{path} holds no unencrypted Ed25519 key in PEM; restore it, or remove it and enrol anew"
            )
        return cls(private)

    def save(self, path: Path) -> None:
        """Write the private key as PKCS8 PEM, readable by the owner alone from its first instant.

        Raises:
            Unavailable: if the file exists (it is never overwritten) or cannot be written.
        """
        text = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            create_private(path, text)
        except FileExistsError:
            raise Unavailable(f"{path} exists already and an identity is never overwritten; choose another") from None
        except OSError as error:
            raise Unavailable(f"the identity {path} cannot be written: {error.strerror}") from None

    @property
    def key(self) -> bytes:
        """The public key, 32 bytes."""
        return self._private.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`, 64 bytes."""
        return self._private.sign(data)


def verify(key: bytes, data: bytes, signature: bytes) -> None:
    """Return if `signature` is by the holder of `key` over `data`.

    Raises:
        ProtocolViolation: otherwise.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise ProtocolViolation("the peer's signature does not match its key and what it sent") from None


def key_text(key: bytes) -> str:
    """A public key as people pass it on: `ed25519:` and base64url without padding."""
    return _PREFIX + base64.urlsafe_b64encode(key).rstrip(b"=").decode()


def parse_key(text: str) -> bytes:
    """The public key, 32 bytes, that `key_text` wrote as `text`.

    Raises:
        AdmissionError: if it is anything else.
    """
    try:
        key = base64.urlsafe_b64decode(text.removeprefix(_PREFIX) + "=")
    except ValueError:
        key = b""
    if len(key) != 32 or key_text(key) != text:
        raise AdmissionError(f"{text!r} is no public key; one is `{_PREFIX}` and 43 letters, digits, - or _")
    return key


def create_private(path: Path, data: bytes) -> None:
    """Create a file that never was readable by anyone but its owner, and make it durable.

    Raises:
        OSError: if it exists or cannot be written.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
