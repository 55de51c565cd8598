"""How an update becomes bytes, and bytes become an update again."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from koinon.core.types import Spec, Vector


class Encoded(Protocol):
    """Bytes of an encoded update, wherever they lie."""

    @property
    def size(self) -> int:
        """How many there are."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start .. stop`."""


@dataclass(frozen=True)
class InMemory:
    """An encoded update in memory."""

    data: bytes | memoryview

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start .. stop`, without a copy."""
        return memoryview(self.data)[start:stop]


@dataclass(frozen=True)
class OnDisk:
    """An encoded update in a file, which is open only while it is read."""

    path: Path

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.path.stat().st_size

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start .. stop`."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(stop - start)


class Codec(Protocol):
    """Encodes a finished update for the wire, and decodes it block by block on the server."""

    def admit(self, spec: Spec) -> Spec:
        """What is known of an update after coding; raises AdmissionError if it cannot be coded."""

    def size(self, length: int) -> int | None:
        """Bytes of an encoded vector of `length` elements, or None when they depend on the values."""

    def encode(self, vector: Vector, rng: torch.Generator) -> bytes | memoryview:
        """The bytes of a vector `[D]`."""

    def decode(self, encoded: Encoded, length: int, start: int, stop: int) -> Vector:
        """Elements `start .. stop` of a vector of `length` elements; float32 `[stop - start]`.

        Raises:
            ValueError: if the bytes are no encoding of a vector of `length` elements.
        """


@dataclass(frozen=True)
class Float32:
    """The vector as it is: little-endian float32."""

    def admit(self, spec: Spec) -> Spec:
        """Nothing changes, but floats do not add up in a ring."""
        return replace(spec, summable=False)

    def size(self, length: int) -> int | None:
        """Four bytes for every element."""
        return 4 * length

    def encode(self, vector: Vector, rng: torch.Generator) -> bytes | memoryview:
        """The vector's own memory, without a copy."""
        return vector.contiguous().numpy().astype("<f4", copy=False).view(np.uint8).data

    def decode(self, encoded: Encoded, length: int, start: int, stop: int) -> Vector:
        """The elements as they lie there."""
        if encoded.size != 4 * length:
            raise ValueError(f"{encoded.size} bytes where {4 * length} were expected")
        block = np.frombuffer(encoded.read(4 * start, 4 * stop), dtype="<f4").astype(np.float32)
        return torch.from_numpy(block)
