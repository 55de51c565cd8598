"""What a codec leaves out is not lost: it is added to the next update."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Spec, Vector
from koinon.update.codec import (
    Claims,
    Codec,
    Composable,
    Encoded,
    InMemory,
    Section,
    Shared,
    floats_as_bytes,
    read_floats,
)
from koinon.update.stage import State

BLOCK = 1 << 17
"""Elements that are decoded and widened at a time."""

_SCALE_BYTES = 4


class Remembering(Composable):
    """Base of codecs that keep a part of an update for later ones; each has to see the whole of it.

    The memory, as long as the model, lies in the node's journal. After a round in which the server refused the update it
    is again what it was before that round, so that nothing that was kept earlier is lost with the refused update. Of an
    update of which a node never hears whether it counted, it assumes that it did.
    """

    codec: Codec

    def __rshift__(self, other: Composable) -> Composable:
        raise self._inside(type(self.codec).__name__, type(other).__name__)

    def following(self, first: Composable) -> Composable:
        """Refused: it has to see the whole update."""
        raise self._inside(type(first).__name__, type(self.codec).__name__)

    def admit(self, spec: Spec) -> Spec:
        """With a memory added, nothing bounds an update.

        After a client's own noise the memory holds noisy updates only, of which it tells nothing more.

        Raises:
            AdmissionError: beside the server's noise, which accounts for one round's data in one round's update.
        """
        if spec.central_noise:
            name = type(self).__name__
            raise AdmissionError(
                f"{name} carries earlier rounds' data into an update, beyond its clip and the sampling that the server's noise "
                f"is accounted with; drop {name}, and use a codec without bias such as Eden or Quantize"
            )
        return self.claims.of(self.codec.admit(Claims(growth=float("inf")).of(spec)))

    def _inside(self, first: str, second: str) -> AdmissionError:
        name = type(self).__name__
        return AdmissionError(f"{name} has to see the whole update; write {name}({first}(…) >> {second}(…))")


@dataclass(frozen=True)
class ErrorFeedback(Remembering):
    """Encodes an update plus what was left out of earlier ones, and remembers what is left out now.

    What is decoded is scaled, by a factor of four bytes that travels, to be as near as it can be to what was encoded. So
    memory never grows by coding, and with a contraction c of the codec it holds at most 4 (1 - c) / c² times an
    update's square on average.

    Source: Seide et al., "1-bit stochastic gradient descent" (2014); Karimireddy et al., "Error feedback fixes SignSGD
    and other gradient compression schemes" (2019).

    Attributes:
        codec: Encodes the sum.

    Raises:
        AdmissionError: if `codec` has such a memory itself.
    """

    codec: Codec

    def __post_init__(self) -> None:
        if isinstance(self.codec, Remembering):
            name = type(self.codec).__name__
            cure = "keep one" if name == "ErrorFeedback" else f"write {name}(ErrorFeedback(…))"
            raise AdmissionError(f"{name} within ErrorFeedback would remember everything twice; {cure}")

    @property
    def claims(self) -> Claims:
        """Of one round by itself: no scale is nearer than the best, and that one never enlarges."""
        return Claims(kept=self.codec.claims.contraction)

    def init(self, layout: Layout) -> State:
        """Nothing left out yet, and the codec's own memory."""
        return {"left": torch.zeros(layout.length), **prefixed(self.codec.init(layout))}

    def size(self, layout: Layout) -> int | None:
        """The codec's, and the scale."""
        size = self.codec.size(layout)
        return None if size is None else _SCALE_BYTES + size

    def most(self, layout: Layout) -> int:
        """The codec's, and the scale."""
        return _SCALE_BYTES + self.codec.most(layout)

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """The bytes of the vector and the memory, and what they leave out: besides those two only a block is needed."""
        left = vector + state["left"]
        inner, data = self.codec.encode(without_prefix(state), left, shared, rng)
        encoded = bytearray(_SCALE_BYTES) + data  # a copy: the bytes may be the memory of `left`
        sent = Section(InMemory(memoryview(encoded)), _SCALE_BYTES, len(encoded))
        scale = self._best(left, sent, shared)
        encoded[:_SCALE_BYTES] = floats_as_bytes(scale[None])
        for start, block in self._blocks(sent, shared):
            left[start : start + len(block)] -= block.mul_(scale)
        return {"left": left, **prefixed(inner)}, memoryview(encoded)

    def decode(self, encoded: Encoded, shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop`, scaled."""
        inner = Section(encoded, _SCALE_BYTES, encoded.size)
        return self.codec.decode(inner, shared, start, stop).mul_(read_floats(encoded, 0, 1))

    def _best(self, whole: Vector, sent: Encoded, shared: Shared) -> torch.Tensor:
        """What to multiply by what is decoded so that it comes nearest to `whole`; float32 `[]`."""
        products = squares = torch.zeros((), dtype=torch.float64)
        for start, block in self._blocks(sent, shared):
            wide = block.to(torch.float64)
            products = products + torch.dot(whole[start : start + len(block)].to(torch.float64), wide)
            squares = squares + torch.dot(wide, wide)
        return (products / squares if squares > 0 else squares).to(torch.float32)

    def _blocks(self, sent: Encoded, shared: Shared) -> Iterator[tuple[int, Vector]]:
        """What is decoded, block by block, each with the place of its first value."""
        for start in range(0, shared.length, BLOCK):
            yield start, self.codec.decode(sent, shared, start, min(start + BLOCK, shared.length))


def prefixed(state: State) -> State:
    """What a codec within a codec remembers, among what the outer one does."""
    return {f"codec.{name}": tensor for name, tensor in state.items()}


def without_prefix(state: State) -> State:
    """The same, by itself."""
    return {name.removeprefix("codec."): tensor for name, tensor in state.items() if name.startswith("codec.")}
