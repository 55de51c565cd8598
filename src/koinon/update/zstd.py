"""Lossless compression of encoded updates."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import zstandard

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Spec, Vector
from koinon.update.codec import Claims, Codec, Composable, Encoded, Float32, Section, Shared
from koinon.update.stage import State

_SIZE_BYTES = 8

FRAME = 1 << 16
"""Bytes that are compressed together, and have to be decompressed to read one of them."""


@dataclass(frozen=True)
class Zstd(Composable):
    """Another codec's bytes, compressed by zstd where that makes them fewer; `Quantize(4) >> Zstd()` says it.

    It pays where bytes are not all equally frequent: after `Quantize`, whose large levels are rare, and where many values
    are 0; hardly after `Eden`, and not at all after 1 bit. How many bytes there are depends on the values.

    Attributes:
        of: The other codec.
        level: Of zstd, 1 to 19: more takes longer.

    Raises:
        AdmissionError: if `level` is out of its bounds, or `of` is compressed already.
    """

    of: Codec = Float32()
    level: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 19:
            raise AdmissionError(f"Zstd has levels from 1 to 19, not {self.level}")
        if isinstance(self.of, Zstd):
            raise AdmissionError("Zstd after Zstd makes nothing shorter; keep one")

    @property
    def claims(self) -> Claims:
        """Nothing more is lost."""
        return self.of.claims

    def following(self, first: Composable) -> Composable:
        """The bytes of `first`, compressed."""
        if self.of != Float32():
            return first.followed(self)
        return replace(self, of=first)

    def followed(self, other: Composable) -> Composable:
        """Refused: nothing comes after the last."""
        raise AdmissionError(f"Zstd comes last; write {type(other).__name__} before it")

    def admit(self, spec: Spec) -> Spec:
        """As of the codec whose bytes it compresses.

        Raises:
            AdmissionError: beside the server's noise, since the number of bytes would tell of the values without any.
        """
        if spec.central_noise:
            raise AdmissionError(
                "Zstd's number of bytes tells whoever watches the network something of the values, without noise; drop Zstd"
            )
        return self.of.admit(spec)

    def init(self, layout: Layout) -> State:
        """The codec's."""
        return self.of.init(layout)

    def size(self, layout: Layout) -> int | None:
        """It depends on the values."""
        return None

    def most(self, layout: Layout) -> int:
        """As many as there were, how many that is, and where each frame ends."""
        return _SIZE_BYTES + self.of.most(layout) + 4 * _frames(self.of.most(layout))

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """How many bytes there are, where the frames end, and the frames, each as it is or compressed."""
        state, data = self.of.encode(state, vector, shared, rng)
        compressor, raw = zstandard.ZstdCompressor(level=self.level), memoryview(data).cast("B")
        ends = np.zeros(_frames(len(raw)), dtype="<u4")
        encoded = bytearray(len(raw).to_bytes(_SIZE_BYTES, "little") + ends.tobytes())
        before = len(encoded)
        for number in range(len(ends)):
            frame = raw[number * FRAME : (number + 1) * FRAME]
            compressed = compressor.compress(frame)
            encoded += compressed if len(compressed) < len(frame) else frame
            ends[number] = len(encoded) - before
        encoded[_SIZE_BYTES:before] = ends.tobytes()
        return state, memoryview(encoded)

    def decode(self, encoded: Encoded, shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop`, from the frames that they need."""
        size = int.from_bytes(encoded.read(0, _SIZE_BYTES), "little")
        if encoded.size < _SIZE_BYTES or size > self.of.most(shared.layout):
            raise ValueError(f"{size} bytes are said to be compressed, which no update of this layout has")
        return self.of.decode(_Raw(Section(encoded, _SIZE_BYTES, encoded.size), size), shared, start, stop)


@dataclass(frozen=True)
class _Raw:
    """What was compressed, decompressed frame by frame.

    Attributes:
        encoded: Where the frames end, and the frames.
        size: How many bytes there were.
    """

    encoded: Encoded
    size: int

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start .. stop`.

        Raises:
            ValueError: if a frame is damaged.
        """
        if start >= stop:
            return b""
        first, last = start // FRAME, -(-stop // FRAME)
        data = b"".join(self._frame(number) for number in range(first, last))
        return memoryview(data)[start - first * FRAME : stop - first * FRAME]

    def _frame(self, number: int) -> bytes:
        at = 4 * _frames(self.size)
        begin, end = self._end(number - 1), self._end(number)
        length = min(FRAME, self.size - number * FRAME)
        if not 0 <= begin <= end <= self.encoded.size - at or end - begin > length:
            raise ValueError("a compressed frame is damaged")
        data = bytes(self.encoded.read(at + begin, at + end))
        return data if len(data) == length else _decompressed(data, length)

    def _end(self, number: int) -> int:
        if number < 0:
            return 0
        ends = bytes(self.encoded.read(4 * number, 4 * number + 4))
        if len(ends) != 4:
            raise ValueError("the list of compressed frames ends early")
        return int.from_bytes(ends, "little")


def _decompressed(data: bytes, length: int) -> bytes:
    try:
        if zstandard.frame_content_size(data) == length:  # else its head could ask for any amount of memory
            return zstandard.ZstdDecompressor(max_window_size=FRAME).decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a compressed frame is damaged: {error}") from error
    raise ValueError("a compressed frame is of another size")


def _frames(size: int) -> int:
    return -(-size // FRAME)
