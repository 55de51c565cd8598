"""Coverage-guided fuzzing of codecs: `python fuzz_codecs.py [libFuzzer's options]`; needs atheris.

The first byte picks a codec, the second a length, the third whether it decodes the rest as it is, or a valid update
edited by the rest. Whatever the bytes are, a block comes out or ValueError.
"""

import sys

import atheris

with atheris.instrument_imports(include=["koinon.update"]):
    import torch

    import koinon as kn
    from koinon.core.rng import generator
    from koinon.update.codec import InMemory, Shared, flat

CODECS = (
    kn.Float16(),
    kn.Quantize(4, block=5),
    kn.Eden(3),
    kn.Sign(),
    kn.TopK(0.1) >> kn.Quantize(2),
    kn.RandomMask(0.3),
    kn.Zstd(),
    kn.ErrorFeedback(kn.TopK(0.2) >> kn.Quantize(8) >> kn.Zstd()),
)
LENGTHS = (0, 1, 100, 70_000)
BLOCK = 64


def valid(codec: kn.Float32, length: int) -> bytes:
    known = Shared(flat(length))
    update = torch.randn(length, generator=generator(0, "fuzz"))
    _, data = codec.encode(codec.init(known.layout), update, known, generator(0, "encode"))
    return bytes(data)


UPDATES = [[valid(codec, length) for length in LENGTHS] for codec in CODECS]


def edit(update: bytes, edits: bytes) -> bytes:
    """The update with single bytes replaced: triples of a place, of two bytes, and a value."""
    edited = bytearray(update)
    for high, low, value in zip(edits[::3], edits[1::3], edits[2::3], strict=False):
        if edited:
            edited[(high << 8 | low) % len(edited)] = value
    return bytes(edited)


def read(data: bytes) -> None:
    if len(data) < 4:
        return
    which, length = data[0] % len(CODECS), LENGTHS[data[1] % len(LENGTHS)]
    update = UPDATES[which][data[1] % len(LENGTHS)]
    encoded = InMemory(edit(update, data[4:]) if data[2] % 2 else data[4:])
    start = data[3] * length // 256
    stop = min(start + BLOCK, length)
    try:
        block = CODECS[which].decode(encoded, Shared(flat(length)), start, stop)
    except ValueError:
        return
    assert block.shape == (stop - start,)


if __name__ == "__main__":
    torch.set_num_threads(1)
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
