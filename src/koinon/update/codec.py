"""How an update becomes bytes, and bytes become an update again."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout, Slot
from koinon.core.rng import generator
from koinon.core.types import Spec, Vector
from koinon.update.stage import State


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


@dataclass(frozen=True)
class Section:
    """Bytes `start .. stop` of an encoded update, as an encoded update of their own.

    Raises:
        ValueError: if there are fewer bytes.
    """

    of: Encoded
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.of.size:
            raise ValueError(f"{self.of.size} bytes where at least {self.start} were expected")

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.stop - self.start

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start .. stop` of the section."""
        return self.of.read(self.start + start, self.start + stop)


@dataclass(frozen=True)
class Claims:
    """What decoding gives back of a vector x; expectations are over the codec's own draws.

    - E |x - shrink · decoded|² <= (1 - contraction) |x|², for every x;
    - if unbiased, E decoded = x;
    - |decoded| <= growth · |x|, whatever was drawn.

    They hold to float32's rounding, for values whose squares float32 can hold.

    Attributes:
        kept: How much of |x|² the mean of what is decoded has, in [0, 1]; 1 where it is x, 0 where nothing is promised.
        variance: How far what is decoded scatters around that mean, in mean squares, relative to the mean's.
        growth: As above; infinite where nothing bounds it.
    """

    kept: float = 1.0
    variance: float = 0.0
    growth: float = 1.0

    @property
    def unbiased(self) -> bool:
        """Whether what is decoded is x on average."""
        return self.kept == 1.0

    @property
    def shrink(self) -> float:
        """What to multiply by, so that scatter costs as little as it can."""
        return 1 / (1 + self.variance)

    @property
    def contraction(self) -> float:
        """What error feedback counts on: which share of a memory a round delivers."""
        return self.kept * self.shrink

    def then(self, values: "Claims") -> "Claims":
        """Of a codec that leaves its values to another, which claims `values`."""
        variance = (1 + self.variance) * (1 + values.variance) - 1
        return Claims(self.kept * values.kept, variance, self.growth * values.growth)

    def of(self, spec: Spec) -> Spec:
        """What is known of an update after decoding. Beside the server's noise the server holds it to its bounds."""
        if spec.central_noise:
            return replace(spec, summable=False)
        bound = None if spec.l2_bound is None or math.isinf(self.growth) else self.growth * spec.l2_bound
        return replace(spec, summable=False, l2_bound=bound, l1_bound=None)


@dataclass(frozen=True)
class Shared:
    """What a round's clients and its server know alike.

    Attributes:
        layout: Which part of what travels is which tensor.
        seed: The run's.
        round: Round number.
    """

    layout: Layout
    seed: int = 0
    round: int = 0

    @property
    def length(self) -> int:
        """D, the elements of what travels."""
        return self.layout.length

    def generator(self, purpose: str) -> torch.Generator:
        """Draws that are the same for everyone in the round."""
        return generator(self.seed, f"codec {purpose}", self.round)

    def values(self, length: int) -> "Shared":
        """The same round, for so many values that have no tensors' shapes."""
        return replace(self, layout=flat(length))


def flat(length: int) -> Layout:
    """The layout of a vector that is one tensor."""
    return Layout((Slot("values", (length,), torch.float32, 0, True),))


class Codec(Protocol):
    """Encodes a finished update for the wire, and decodes it block by block on the server."""

    @property
    def claims(self) -> Claims:
        """How well it keeps what it encodes."""

    def admit(self, spec: Spec) -> Spec:
        """What is known of an update after coding; raises AdmissionError if it cannot be coded."""

    def init(self, layout: Layout) -> State:
        """A client's memory before its first round; it stays with the client."""

    def size(self, layout: Layout) -> int | None:
        """Bytes of an encoded vector of such a layout, or None when they depend on the values."""

    def most(self, layout: Layout) -> int:
        """Bytes of the longest encoding of such a vector."""

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """The memory after, and the bytes of, a finite vector `[D]`, which is not changed.

        Args:
            rng: The client's own draws of the round.
        """

    def decode(self, encoded: Encoded, shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop` of the vector; float32 `[stop - start]`.

        Whatever the bytes are, memory is in proportion to the block. Values may be NaN or infinite.

        Raises:
            ValueError: if the bytes are no encoding of a vector of this layout.
        """


@dataclass(frozen=True)
class Made:
    """Values that are made, a range at a time, when somebody slices them: so they are never held all at once.

    Attributes:
        length: How many there are.
        make: From a place, up to another.
    """

    length: int
    make: Callable[[int, int], Vector]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, places: slice) -> Vector:
        start, stop, _ = places.indices(self.length)
        return self.make(start, stop) if start < stop else torch.empty(0)


class Composable(Codec):
    """Base of codecs that `>>` joins: the one on the right encodes what the one on the left leaves."""

    def __rshift__(self, other: "Composable") -> "Composable":
        return other.following(self)

    def following(self, first: "Composable") -> "Composable":
        """This codec after `first`.

        Raises:
            AdmissionError: if the two do not fit; the message names the cure.
        """
        return first.followed(self)

    def followed(self, other: "Composable") -> "Composable":
        """This codec before `other`; by default it leaves bytes, which no codec of values can take."""
        here, there = type(self).__name__, type(other).__name__
        raise AdmissionError(
            f"{here} leaves bytes, of which {there} can make nothing; put TopK, RandomMask or Rotate first, one codec of "
            "values after it, and Zstd last"
        )


class Values(Composable):
    """Base of codecs without memory whose bytes depend, in number, on the vector's length alone.

    Attributes:
        ranged: Whether `_encoded` slices the vector, each place once and in order, and does nothing else with it. Then what
            comes before this codec makes its values when they are asked for.
    """

    ranged: ClassVar[bool] = False

    def admit(self, spec: Spec) -> Spec:
        """What is known follows from the claims; decoded values do not add up in a ring."""
        return self.claims.of(spec)

    def init(self, layout: Layout) -> State:
        """No memory."""
        return {}

    def size(self, layout: Layout) -> int | None:
        """Always as many."""
        return self._size(layout.length)

    def most(self, layout: Layout) -> int:
        """Always as many."""
        return self._size(layout.length)

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """The bytes of a vector `[D]`."""
        return state, self._encoded(vector, rng)

    def decode(self, encoded: Encoded, shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop`."""
        expected = self._size(shared.length)
        if encoded.size != expected:
            raise ValueError(f"{encoded.size} bytes where {expected} were expected")
        return self._decoded(encoded, shared.length, start, stop)

    @abstractmethod
    def _size(self, length: int) -> int:
        """Bytes of a vector of `length` elements."""

    @abstractmethod
    def _encoded(self, vector: Vector, rng: torch.Generator) -> bytes | memoryview:
        """The bytes of a vector."""

    @abstractmethod
    def _decoded(self, encoded: Encoded, length: int, start: int, stop: int) -> Vector:
        """Elements `start .. stop` of as many bytes as there must be."""


@dataclass(frozen=True)
class Float32(Values):
    """The vector as it is: little-endian float32."""

    @property
    def claims(self) -> Claims:
        """Nothing is lost."""
        return Claims()

    def admit(self, spec: Spec) -> Spec:
        """Nothing changes, but floats do not add up in a ring."""
        return replace(spec, summable=False)

    def _size(self, length: int) -> int:
        return 4 * length

    def _encoded(self, vector: Vector, rng: torch.Generator) -> bytes | memoryview:
        """The vector's own memory, without a copy."""
        return floats_as_bytes(vector)

    def _decoded(self, encoded: Encoded, length: int, start: int, stop: int) -> Vector:
        return read_floats(encoded, start, stop)


def looked_at(codec: Codec, data: bytes | memoryview, shared: Shared) -> Vector:
    """All of an encoded vector: what `decode` gives, but not to be changed, since it may be a view of the bytes."""
    if type(codec) is Float32 and len(data) == 4 * shared.length and not memoryview(data).readonly:
        return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False))
    return codec.decode(InMemory(data), shared, 0, shared.length)


def floats_as_bytes(vector: Vector) -> memoryview:
    """A vector as little-endian float32, without a copy where it is that already."""
    return vector.contiguous().numpy().astype("<f4", copy=False).view(np.uint8).data


def read_floats(encoded: Encoded, start: int, stop: int, offset: int = 0) -> Vector:
    """Elements `start .. stop` of the little-endian float32 vector that lies there from byte `offset` on."""
    raw = encoded.read(offset + 4 * start, offset + 4 * stop)
    return torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))
