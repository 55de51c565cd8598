"""Masks: AES-256-CTR keystreams of whole vectors, added and subtracted modulo 2**16 or 2**32.

A seed is used for one vector, so that the counter may start from zero. The work goes block by block, all masks of a
block before the next one, so that the block stays in the cache and one buffer serves every keystream.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Words: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
"""A vector in the ring, or the sum of some; uint16 or uint32 `[L]`."""

SEED_BYTES = 32
"""Length of a mask's seed: an AES-256 key."""

_BLOCK = 1 << 16
"""Bytes at a time: with the keystream, the zeros that it is made of and the vector, a quarter of a megabyte."""

_ZEROS = bytes(_BLOCK)


def add_masks(vector: Words, plus: Sequence[bytes], minus: Sequence[bytes]) -> Words:
    """Add the masks of some seeds and subtract those of others, in place, and return the vector.

    Args:
        vector: Contiguous, of any length; its type says the modulus.
        plus: Seeds of 32 bytes.
        minus: The same.

    Raises:
        ValueError: if it is no such vector or no such seed.
    """
    if vector.dtype not in (np.uint16, np.uint32) or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError(f"masks need a contiguous uint16 or uint32 vector, not {vector.dtype} {list(vector.shape)}")
    if any(len(seed) != SEED_BYTES for seed in (*plus, *minus)):
        raise ValueError(f"a mask's seed has {SEED_BYTES} bytes")
    added, taken = [_keystream(seed) for seed in plus], [_keystream(seed) for seed in minus]
    each = _BLOCK // vector.itemsize
    buffer = np.empty(min(each, len(vector)), dtype=vector.dtype.newbyteorder("<"))
    for start in range(0, len(vector), each):
        block = vector[start : start + each]
        mask = buffer[: len(block)]
        zeros, room = memoryview(_ZEROS)[: mask.nbytes], mask.view(np.uint8).data
        for update_into in added:
            update_into(zeros, room)
            np.add(block, mask, out=block)
        for update_into in taken:
            update_into(zeros, room)
            np.subtract(block, mask, out=block)
    return vector


def _keystream(seed: bytes) -> Callable[[memoryview, memoryview], int]:
    return Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor().update_into
