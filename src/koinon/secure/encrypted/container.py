"""TenSEAL's bytes without what is the same in all of them: only the coefficients of keys and ciphertexts travel.

TenSEAL reads its containers generously: nothing at all is an empty vector, and a stranger's container chooses its own number of
ciphertexts, their size, their scale and compression. So none is ever read. What arrives is a number of coefficients that is
known beforehand; they are put into a container that was made here, and SEAL checks that each is below its prime.
"""

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import zstandard

from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.secure.encrypted.parameters import (
    BLOCK_BYTES,
    DEGREE,
    PRIME_BITS,
    PUBLIC_BYTES,
    SECRET_BYTES,
    SLOTS,
    STANDARD,
)

_HEADER = 16
_KEYS = (2, 1), (3, 1)
_FLAGS = b"\x10\x07"
"""What TenSEAL may do by itself after a product, as it has them by default; there are no products."""


def tenseal() -> Any:
    """The library, imported when it is needed.

    Raises:
        AdmissionError: if it is not installed.
    """
    try:
        import tenseal as library
    except ImportError:
        raise AdmissionError("EncryptedSum needs TenSEAL: pip install 'koinon[he]'") from None
    return library


@dataclass(frozen=True)
class Containers:
    """What stands around coefficients, from a key and a ciphertext made here and thrown away.

    Attributes:
        parameters: Of the encryption, in SEAL's bytes.
        header: SEAL's own: a magic number, its length, the version; then comes how what follows is compressed.
        public: Before the coefficients of a public key.
        secret: The same of a secret key.
        ciphertext: The same of a ciphertext; its scale is the vector's.
    """

    parameters: bytes
    header: bytes
    public: bytes
    secret: bytes
    ciphertext: bytes

    def context(self, public: bytes | None = None, secret: bytes | None = None) -> Any:
        """A context with the key of these coefficients.

        Raises:
            ProtocolViolation: if they are no key's.
        """
        parts = _field(1, self.parameters)
        parts += _field(2, (b"" if public is None else _field(1, self._sealed(self.public + public))) + _FLAGS)
        if secret is not None:
            parts += _field(3, _field(1, self._sealed(self.secret + secret)))
        try:
            return tenseal().context_from(parts, n_threads=1)
        except (RuntimeError, ValueError) as error:
            raise ProtocolViolation(f"a key of CKKS is none: {error}") from None

    def vector(self, context: Any, block: bytes, scale: float) -> Any:
        """A ciphertext of these coefficients.

        Raises:
            ProtocolViolation: if they are none.
        """
        if len(block) != BLOCK_BYTES:
            raise ProtocolViolation(f"a ciphertext has {len(block)} bytes where {BLOCK_BYTES} were expected")
        parts = _field(1, _number(SLOTS)) + _field(2, self._sealed(self.ciphertext + block))
        try:
            return tenseal().ckks_vector_from(context, parts + b"\x19" + struct.pack("<d", scale))
        except (RuntimeError, ValueError) as error:
            raise ProtocolViolation(f"a ciphertext of CKKS is none: {error}") from None

    def block(self, vector: Any) -> bytes:
        """The coefficients of a ciphertext."""
        inner = _inner(_part(vector.serialize(), 2))
        return inner[len(inner) - BLOCK_BYTES :]

    def _sealed(self, inner: bytes) -> bytes:
        """In SEAL's container, not compressed."""
        return self.header + bytes(3) + struct.pack("<Q", _HEADER + len(inner)) + inner


@cache
def containers(scale: float) -> Containers:
    """For ciphertexts of a scale.

    Raises:
        AdmissionError: if TenSEAL is not installed.
    """
    library, context = tenseal(), fresh()
    public, secret = (_inner(_part(_saved(context, place), *path)) for place, path in enumerate(_KEYS))
    vector = library.ckks_vector(context, [0.0] * SLOTS, scale).serialize()
    parameters = _part(_saved(context, 0), 1)
    return Containers(
        parameters,
        parameters[:5],
        public[: len(public) - PUBLIC_BYTES],
        secret[: len(secret) - SECRET_BYTES],
        _inner(_part(vector, 2))[:-BLOCK_BYTES],
    )


def fresh() -> Any:
    """A context with a new pair of keys.

    Raises:
        AdmissionError: if the parameters were below 128 bits of security, or TenSEAL is not installed.
    """
    if sum(PRIME_BITS) > STANDARD[DEGREE]:
        raise AdmissionError(f"primes of {sum(PRIME_BITS)} bits at degree {DEGREE} have less than 128 bits of security")
    library = tenseal()
    return library.context(library.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(PRIME_BITS), n_threads=1)


def coefficients(context: Any) -> tuple[bytes, bytes]:
    """Of both keys of a context: the public one's, the secret one's."""
    public, secret = (_inner(_part(_saved(context, place), *path)) for place, path in enumerate(_KEYS))
    return public[len(public) - PUBLIC_BYTES :], secret[len(secret) - SECRET_BYTES :]


def _saved(context: Any, key: int) -> bytes:
    saved: bytes = context.serialize(
        save_public_key=key == 0, save_secret_key=key == 1, save_galois_keys=False, save_relin_keys=False
    )
    return saved


def _inner(sealed: bytes) -> bytes:
    """What stands in SEAL's container, which was made here and is compressed."""
    return zstandard.ZstdDecompressor().decompressobj().decompress(sealed[_HEADER:])


def _field(number: int, content: bytes) -> bytes:
    """Bytes as a field of a protocol buffer."""
    return bytes([number << 3 | 2]) + _number(len(content)) + content


def _number(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _part(message: bytes, *path: int) -> bytes:
    """A field of a field of a protocol buffer that was made here."""
    for wanted in path:
        place = 0
        while True:
            tag, place = _read(message, place)
            if tag & 7 == 2:
                length, place = _read(message, place)
                if tag >> 3 == wanted:
                    message = message[place : place + length]
                    break
                place += length
            elif tag & 7 == 1:
                place += 8
            else:
                _, place = _read(message, place)
    return message


def _read(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        digit = message[place]
        place, value, shift = place + 1, value | (digit & 127) << shift, shift + 7
        if digit < 128:
            return value, place
