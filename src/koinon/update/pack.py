"""Small numbers in few bits.

A number of 1, 2, 4 or 8 bits never straddles a byte, and the first lies lowest. One of 3 bits lies in two places: its
lower two bits in a first run, its highest in a second. So any range is read by itself, and like numbers make like
bytes, from which zstd gains.
"""

import numpy as np
import numpy.typing as npt

from koinon.update.codec import Encoded

Codes = npt.NDArray[np.uint8]

_RUNS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
WIDTHS = tuple(_RUNS)
"""Bits that a number may have."""


def packed_bytes(width: int, count: int) -> int:
    """Bytes of `count` numbers of `width` bits."""
    return sum(_run_bytes(bits, count) for bits in _RUNS[width])


def pack_into(target: bytearray, offset: int, width: int, count: int, start: int, codes: Codes) -> None:
    """Write numbers below 2**width, those from `start` on of the `count` that lie from byte `offset` on.

    Args:
        start: A multiple of 8, where a byte begins whatever the width.
    """
    above = 0
    for bits in _RUNS[width]:
        run = _pack_run((codes >> above) & (2**bits - 1) if len(_RUNS[width]) > 1 else codes, bits)
        first = offset + start * bits // 8
        target[first : first + len(run)] = run
        above += bits
        offset += _run_bytes(bits, count)


def unpack(encoded: Encoded, offset: int, width: int, count: int, start: int, stop: int) -> Codes:
    """Numbers `start .. stop` of the `count` that lie there from byte `offset` on."""
    codes, above = np.zeros(stop - start, dtype=np.uint8), 0
    for bits in _RUNS[width]:
        each = 8 // bits
        first, last = start // each, -(-stop // each)
        raw = np.frombuffer(encoded.read(offset + first, offset + last), dtype=np.uint8)
        run = _unpack_run(raw, bits)[start - first * each : stop - first * each]
        if len(_RUNS[width]) == 1:
            return run
        codes |= run << above
        above += bits
        offset += _run_bytes(bits, count)
    return codes


def _run_bytes(bits: int, count: int) -> int:
    return -(-count * bits // 8)


def _pack_run(codes: Codes, bits: int) -> bytes:
    if bits == 8:
        return codes.tobytes()
    if bits == 1:
        return np.packbits(codes, bitorder="little").tobytes()
    size = _run_bytes(bits, len(codes))
    if len(codes) % 4:
        codes = np.pad(codes, (0, -len(codes) % 4))
    if bits == 4:
        pairs: npt.NDArray[np.uint16] = codes.view("<u2")
        return (pairs | pairs >> 4).astype(np.uint8).tobytes()[:size]
    fours: npt.NDArray[np.uint32] = codes.view("<u4")
    return (fours | fours >> 6 | fours >> 12 | fours >> 18).astype(np.uint8).tobytes()[:size]


def _unpack_run(raw: Codes, bits: int) -> Codes:
    if bits == 8:
        return raw.copy()  # PyTorch takes no memory that cannot be written
    if bits == 1:
        return np.unpackbits(raw, bitorder="little")
    if bits == 4:
        pairs: npt.NDArray[np.uint16] = raw.astype("<u2")
        return ((pairs | pairs << 4) & 0x0F0F).view(np.uint8)
    fours: npt.NDArray[np.uint32] = raw.astype("<u4")
    return ((fours | fours << 6 | fours << 12 | fours << 18) & 0x03030303).view(np.uint8)
