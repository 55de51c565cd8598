"""An update that says little waits for the next one."""

from dataclasses import dataclass

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.norm import norms
from koinon.core.types import Vector
from koinon.update.codec import Claims, Codec, Encoded, Section, Shared
from koinon.update.feedback import Remembering, prefixed, without_prefix
from koinon.update.stage import State

_SLOWLY = 0.1
"""Weight of an update in the mean length of updates."""


@dataclass(frozen=True)
class Lazy(Remembering):
    """Sends one byte as long as what has gathered is short, and all that has gathered once it is long.

    What has gathered is long when it reaches `patience` times the mean length of the client's updates. Updates that point
    the same way reach it after about `patience` rounds, those that are mostly noise after about its square; so who has
    something to say speaks more often. Until then the client counts with an update of zeros.

    Source: Chen et al., "LAG: lazily aggregated gradient for communication-efficient distributed learning" (2018), which
    compares lengths as well, but has the server use a client's last gradient again; here what waits is added up.

    Attributes:
        codec: Encodes what is sent, `ErrorFeedback(…)` for instance.
        patience: Mean lengths of an update that have to gather, >= 1. Below about 1.5 hardly anything waits.
        most_skipped: Rounds in a row after which a client sends in any case, >= 1.

    Raises:
        AdmissionError: if a number is out of its bounds, or `codec` is lazy itself.
    """

    codec: Codec
    patience: float = 2.0
    most_skipped: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.codec, Lazy):
            raise AdmissionError("Lazy within Lazy would wait twice; keep one")
        if not self.patience >= 1:
            raise AdmissionError(f"Lazy needs a patience of at least one update's length, not {self.patience}")
        if self.most_skipped < 1:
            raise AdmissionError(f"Lazy skips at least one round, not {self.most_skipped}; drop it to skip none")

    @property
    def claims(self) -> Claims:
        """Of one round by itself nothing but that it enlarges no more than the codec."""
        return Claims(kept=0.0, growth=self.codec.claims.growth)

    def init(self, layout: Layout) -> State:
        """Nothing waits yet, and the codec's own memory."""
        return {
            "waiting": torch.zeros(0),  # a vector of the update's length while anything waits
            "length": torch.zeros((), dtype=torch.float64),
            "skipped": torch.zeros((), dtype=torch.int64),
            **prefixed(self.codec.init(layout)),
        }

    def size(self, layout: Layout) -> int | None:
        """It depends on the values."""
        return None

    def most(self, layout: Layout) -> int:
        """The codec's, and a byte."""
        return 1 + self.codec.most(layout)

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """The bytes of the vector and what waits, or the one byte that says that they wait."""
        length = _mean(state["length"], norms(vector)[0])
        whole = vector + state["waiting"] if len(state["waiting"]) else vector
        if norms(whole)[0] < self.patience * length and state["skipped"] < self.most_skipped:
            return {
                **state,
                "waiting": whole if len(state["waiting"]) else whole.clone(),
                "length": length,
                "skipped": state["skipped"] + 1,
            }, b"\0"
        inner, data = self.codec.encode(without_prefix(state), whole, shared, rng)
        rested = {"waiting": torch.zeros(0), "skipped": torch.zeros_like(state["skipped"])}
        return {**rested, "length": length, **prefixed(inner)}, b"".join((b"\1", data))

    def decode(self, encoded: Encoded, shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop`: zeros while all of them wait."""
        match bytes(encoded.read(0, 1)), encoded.size:
            case b"\0", 1:
                return torch.zeros(stop - start)
            case b"\1", _:
                return self.codec.decode(Section(encoded, 1, encoded.size), shared, start, stop)
        raise ValueError("the first byte does not say whether an update follows")


def _mean(before: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """The mean length with one more, newer ones having more weight."""
    return torch.where(before > 0, (1 - _SLOWLY) * before + _SLOWLY * length, length)
