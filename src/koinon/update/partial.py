"""Codecs that leave values for another codec."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch

from koinon.core.layout import Layout
from koinon.core.types import Spec, Vector
from koinon.update.codec import Claims, Codec, Composable, Encoded, Float32, Made, Section, Shared, Values, flat
from koinon.update.stage import State


class Partial(Composable):
    """Base of codecs that write a head of their own and leave values, fewer or other ones, to the codec `then`."""

    then: Codec

    @property
    def claims(self) -> Claims:
        """What the two of them keep."""
        return self._own.then(self.then.claims)

    def followed(self, other: Composable) -> Composable:
        """`other` encodes the values, or what the values' codec leaves of them."""
        then = self.then.followed(other) if isinstance(self.then, Composable) and self.then != Float32() else other
        return replace(self, then=then)  # type: ignore[type-var]  # those that derive from it are dataclasses

    def admit(self, spec: Spec) -> Spec:
        """What is known follows from the claims, once the values' codec has no objection."""
        self.then.admit(spec)
        return self.claims.of(spec)

    def init(self, layout: Layout) -> State:
        """The values' codec's."""
        return self.then.init(flat(self._count(Shared(layout))))

    def size(self, layout: Layout) -> int | None:
        """Known if that of the values is."""
        known = Shared(layout)
        values = self.then.size(flat(self._count(known)))
        return None if values is None else self._head_bytes(known) + values

    def most(self, layout: Layout) -> int:
        """The head, and the most for the values."""
        known = Shared(layout)
        return self._head_bytes(known) + self.then.most(flat(self._count(known)))

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """The head, then the values."""
        head, left = self._split(vector, shared, rng)
        sliced = isinstance(self.then, Values) and self.then.ranged
        values: Vector = left[:] if isinstance(left, Made) and not sliced else left  # type: ignore[assignment]
        state, tail = self.then.encode(state, values, shared.values(len(values)), rng)
        return state, b"".join((head, tail)) if head else tail

    def decode(self, encoded: Encoded, shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop`."""
        at = self._head_bytes(shared)
        head, tail = Section(encoded, 0, at), Section(encoded, at, encoded.size)
        inner = shared.values(self._count(shared))
        return self._joined(head, lambda first, last: self.then.decode(tail, inner, first, last), shared, start, stop)

    @property
    @abstractmethod
    def _own(self) -> Claims:
        """What it keeps by itself."""

    @abstractmethod
    def _count(self, shared: Shared) -> int:
        """How many values are left of a vector."""

    @abstractmethod
    def _head_bytes(self, shared: Shared) -> int:
        """Bytes of the head."""

    @abstractmethod
    def _split(self, vector: Vector, shared: Shared, rng: torch.Generator) -> tuple[bytes, Vector | Made]:
        """The head and the values of a vector, or what makes them."""

    @abstractmethod
    def _joined(self, head: Encoded, values: "Read", shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop` of a vector, from its head and a function that reads a range of its values."""


Read = Callable[[int, int], Vector]
