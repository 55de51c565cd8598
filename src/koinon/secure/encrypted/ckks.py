"""Encryption by CKKS, block by block: a few ciphertexts at a time, however long the vector.

TenSEAL draws the randomness of keys and encryptions itself, from the operating system. What is said here of keys and
ciphertexts are their bare coefficients (`koinon.secure.encrypted.container`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from koinon.core.errors import ProtocolViolation
from koinon.secure.encrypted import container
from koinon.secure.encrypted.packing import Slots
from koinon.secure.encrypted.parameters import SLOTS, Parameters


def keys() -> tuple[bytes, bytes]:
    """A new pair: public, secret.

    Raises:
        AdmissionError: if TenSEAL is not installed.
    """
    return container.coefficients(container.fresh())


def encrypted(parameters: Parameters, public: bytes, words: Slots) -> Iterator[bytes]:
    """Ciphertexts of words, taken as numbers around 0, one after the other.

    Raises:
        ProtocolViolation: if it is no public key.
    """
    library, context = container.tenseal(), container.containers(parameters.scale).context(public=public)
    for start in range(0, len(words), SLOTS):
        values = words[start : start + SLOTS].view(np.int32).astype(np.float64)
        padded = np.zeros(SLOTS)
        padded[: len(values)] = values
        vector = library.ckks_vector(context, padded.tolist(), parameters.scale)
        yield container.containers(parameters.scale).block(vector)


def added(parameters: Parameters, vectors: Sequence[Iterable[bytes]], weights: Sequence[int]) -> Iterator[bytes]:
    """The ciphertexts of a weighted sum of encrypted vectors, without any key.

    Args:
        vectors: The ciphertexts of each, which are read one by one.
        weights: A whole number above 0 for each.

    Raises:
        ProtocolViolation: if one is not as long as the others, or has what is no ciphertext.
    """
    around = container.containers(parameters.scale)
    context = around.context()
    try:
        for blocks in zip(*vectors, strict=True):
            total = None
            for block, weight in zip(blocks, weights, strict=True):
                part = _times(around.vector(context, block, parameters.scale), weight)
                total = part if total is None else total.add_(part)
            if total is not None:
                yield around.block(total)
    except ValueError:
        raise ProtocolViolation("encrypted updates of different lengths") from None
    except RuntimeError as error:
        raise ProtocolViolation(f"encrypted updates do not add up: {error}") from None


def decrypted(parameters: Parameters, secret: bytes, blocks: Iterable[bytes], count: int) -> Slots:
    """So many words of a sum, exactly, modulo 2**32.

    Raises:
        ProtocolViolation: if it is no sum of what `encrypted` made with this key, as far as can be seen: what is decrypted is no
            whole number, or too large.
    """
    around = container.containers(parameters.scale)
    context = around.context(secret=secret)
    words, place = np.zeros(Parameters.ciphertexts(count) * SLOTS, dtype=np.uint32), 0
    for block in blocks:
        if place == len(words):
            raise ProtocolViolation(f"more ciphertexts than hold {count} words")
        values = np.array(around.vector(context, block, parameters.scale).decrypt())
        whole = np.rint(values)
        if not (np.abs(values - whole) <= parameters.tolerance).all() or np.abs(whole).max() > parameters.largest:
            raise ProtocolViolation("what was decrypted is no sum of updates that were encrypted with this round's key")
        words[place : place + SLOTS] = whole.astype(np.int64).astype(np.uint32)
        place += SLOTS
    if place < len(words):
        raise ProtocolViolation(f"fewer ciphertexts than hold {count} words")
    return words[:count]


def _times(vector: Any, weight: int) -> Any:
    """A ciphertext times a whole number, by doubling: no product, so no scale grows and no prime is used up."""
    total = None
    while True:
        if weight & 1:
            total = vector if total is None else total + vector
        weight >>= 1
        if not weight:
            return total
        vector = vector + vector
