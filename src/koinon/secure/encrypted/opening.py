"""How the sum is read out of what both committees answered."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from koinon.core.errors import ProtocolViolation
from koinon.core.types import ClientId
from koinon.secure.encrypted.packing import Packing, Slots
from koinon.secure.mask import Words, add_masks
from koinon.secure.ring import Ring


@dataclass(frozen=True, slots=True)
class Opening:
    """What to do with the answers, which are all equal within a committee.

    Attributes:
        ring: What updates are encoded in.
        weights: By what each survivor's update was multiplied, by sorted name.
        opener: Whose answer is the sum that still wears the keepers' masks.
        keeper: Whose answer is the sum of these masks.
    """

    ring: Ring
    weights: Mapping[ClientId, int]
    opener: ClientId
    keeper: ClientId

    @property
    def survivors(self) -> tuple[ClientId, ...]:
        """Whose updates are in the sum, sorted."""
        return tuple(sorted(self.weights))

    @property
    def total(self) -> int:
        """Sum of the weights: how many updates `Ring.decode` counts."""
        return sum(self.weights.values())

    def apply(self, opener: bytes, keeper: bytes) -> Words:
        """The weighted sum of the survivors' encoded updates, from both answers."""
        packing = Packing(self.ring)
        return packing.unpack(from_bytes(packing, opener) - from_bytes(packing, keeper))


def to_bytes(words: Slots) -> bytes:
    """Words as an answer has them."""
    return words.astype("<u4", copy=False).tobytes()


def from_bytes(packing: Packing, data: bytes) -> Slots:
    """The words of an answer.

    Raises:
        ProtocolViolation: if they are more or fewer.
    """
    if len(data) != 4 * packing.count:
        raise ProtocolViolation(f"an answer has {len(data)} bytes where {4 * packing.count} were expected")
    return np.frombuffer(data, dtype="<u4").astype(np.uint32)


def masks(packing: Packing, weighted: Mapping[bytes, int]) -> Slots:
    """The sum of the masks of these seeds, each times its weight; uint32 `[W]`."""
    total = np.zeros(packing.count, dtype=np.uint32)
    for weight in sorted(set(weighted.values())):
        part = np.zeros(packing.count, dtype=np.uint32)
        add_masks(part, [seed for seed, times in weighted.items() if times == weight], [])
        total += part * np.uint32(weight)
    return total
