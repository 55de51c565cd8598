"""Some of a model's layers in one round, others in the next."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout, Slot
from koinon.core.types import Vector
from koinon.update.codec import Claims, Codec, Composable, Encoded, Float32, Shared, flat
from koinon.update.partial import Partial, Read


@dataclass(frozen=True)
class Layers(Partial):
    """Part of a model's layers in each round, the same for every client, and each part in its turn.

    The largest layers come into parts of their own as far as that makes the parts equal; what has one name up to the last
    point, as a layer's weight and bias have, stays together. A model of fewer layers has fewer parts. What is not in the
    round's part stays as it was: put this into `ErrorFeedback` to have it added to what the layer sends in its turn.

    Source: Wang et al., "Why go full? Elevating federated learning through partial network updates" (2024).

    Attributes:
        parts: In how many rounds every layer has its turn, >= 2.
        then: Encodes the values; `Layers(4) >> Quantize(8)` says it.

    Raises:
        AdmissionError: if `parts` is less than 2.
    """

    parts: int
    then: Codec = Float32()

    def __post_init__(self) -> None:
        if self.parts < 2:
            raise AdmissionError(f"Layers needs at least two parts, not {self.parts}; drop it to send every layer")

    def following(self, first: Composable) -> Composable:
        """Refused: what another codec leaves has no layers."""
        name = type(first).__name__
        raise AdmissionError(f"what {name} leaves has no layers; write Layers({self.parts}) >> {name}(…)")

    def size(self, layout: Layout) -> int | None:
        """It depends on the round, if parts differ."""
        sizes = {self.then.size(flat(_length(part))) for part in _parts(layout, self.parts)}
        return sizes.pop() if len(sizes) == 1 else None

    def most(self, layout: Layout) -> int:
        """Of the largest part."""
        return max((self.then.most(flat(_length(part))) for part in _parts(layout, self.parts)), default=0)

    @property
    def _own(self) -> Claims:
        """In one round all may lie in the other parts."""
        return Claims(kept=0.0)

    def _count(self, shared: Shared) -> int:
        return _length(self._part(shared))

    def _head_bytes(self, shared: Shared) -> int:
        return 0

    def _split(self, vector: Vector, shared: Shared, rng: torch.Generator) -> tuple[bytes, Vector]:
        part = self._part(shared)
        if not part or part[-1].stop - part[0].start == _length(part):  # they lie side by side: no copy
            return b"", vector[part[0].start : part[-1].stop] if part else vector
        return b"", torch.cat([vector[slot.start : slot.stop] for slot in part])

    def _joined(self, head: Encoded, values: Read, shared: Shared, start: int, stop: int) -> Vector:
        vector = torch.zeros(stop - start)
        for slot, before in _placed(self._part(shared)):
            low, high = max(start, slot.start), min(stop, slot.stop)
            if low < high:
                vector[low - start : high - start] = values(before + low - slot.start, before + high - slot.start)
        return vector

    def _part(self, shared: Shared) -> tuple[Slot, ...]:
        """The tensors of a round."""
        parts = _parts(shared.layout, self.parts)
        return parts[shared.round % len(parts)] if parts else ()


@lru_cache(maxsize=16)  # the server needs it for every block of every update
def _parts(layout: Layout, count: int) -> tuple[tuple[Slot, ...], ...]:
    """The tensors of each part, in the order of the first of them; as many parts as there are layers, at most."""
    layers: dict[str, list[Slot]] = {}
    for slot in layout.slots:
        layers.setdefault(slot.name.rpartition(".")[0] or slot.name, []).append(slot)
    parts: list[list[Slot]] = [[] for _ in range(min(count, len(layers)))]
    for layer in sorted(layers.values(), key=_length, reverse=True):
        min(parts, key=lambda part: (_length(part), len(part))).extend(layer)
    ordered = (tuple(sorted(part, key=lambda slot: slot.start)) for part in parts)
    return tuple(sorted(ordered, key=lambda part: part[0].start if part else math.inf))


def _length(slots: tuple[Slot, ...] | list[Slot]) -> int:
    """Elements of tensors."""
    return sum(slot.stop - slot.start for slot in slots)


def _placed(part: tuple[Slot, ...]) -> Iterator[tuple[Slot, int]]:
    """Each tensor of a part, and how many of its values come before it."""
    before = 0
    for slot in part:
        yield slot, before
        before += slot.stop - slot.start
