"""As many bytes as a node's link can take."""

import math
from dataclasses import dataclass, replace

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout
from koinon.core.types import Spec, Vector
from koinon.update.codec import Claims, Codec, Composable, Encoded, Section, Shared
from koinon.update.feedback import Remembering
from koinon.update.stage import State

_PLACE_BYTES = 1


@dataclass(frozen=True)
class Link:
    """What is known of the way from a node to the server.

    Attributes:
        bytes_per_s: That go through in a second.
        round_trip_s: Until what was sent is answered, without waiting for bandwidth.
    """

    bytes_per_s: float
    round_trip_s: float

    def within(self, seconds: float) -> float:
        """Bytes that are there after so many seconds."""
        return self.bytes_per_s * max(0.0, seconds - self.round_trip_s)


@dataclass(frozen=True)
class Fitted(Composable):
    """The first of several codecs whose update fits a node's link and a budget; the last, if none does.

    Each node chooses for itself, anew in every round, from what it measured when it sent its last updates; one that has
    not sent any starts with the last. The place of the choice travels with the update, in one byte.

    Attributes:
        choices: Two to 256 codecs, from the one with the most bytes to the one with the fewest.
        seconds: In which an update shall be there; None: however long it takes.
        most_bytes: That an update may have; None: any number.

    Raises:
        AdmissionError: if there is nothing to choose from or by, or a choice has a memory of the whole update.
    """

    choices: tuple[Codec, ...]
    seconds: float | None = None
    most_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= 256:
            raise AdmissionError(f"Fitted chooses from two to 256 codecs, not from {len(self.choices)}")
        if self.seconds is None and self.most_bytes is None:
            raise AdmissionError("Fitted needs seconds or most_bytes to choose by; give one")
        if self.seconds is not None and not self.seconds > 0:
            raise AdmissionError(f"Fitted needs seconds > 0, not {self.seconds}")
        if self.most_bytes is not None and self.most_bytes < 1:
            raise AdmissionError(f"Fitted needs most_bytes >= 1, not {self.most_bytes}")
        for choice in self.choices:
            if isinstance(choice, Fitted | Remembering):
                name = type(choice).__name__
                raise AdmissionError(f"each choice would remember another update; write {name}(Fitted(…))")
        object.__setattr__(self, "choices", tuple(self.choices))

    @property
    def claims(self) -> Claims:
        """The least that any of them claims."""
        claims = [choice.claims for choice in self.choices]
        return Claims(
            min(each.kept for each in claims),
            max(each.variance for each in claims),
            max(each.growth for each in claims),
        )

    def following(self, first: Composable) -> Composable:
        """Refused: it chooses among whole codecs."""
        raise AdmissionError(f"Fitted chooses among whole codecs; write {type(first).__name__}(…) >> … in each choice")

    def admit(self, spec: Spec) -> Spec:
        """What is known follows from the claims, once no choice has an objection."""
        for choice in self.choices:
            choice.admit(spec)
        return self.claims.of(spec)

    def init(self, layout: Layout) -> State:
        """The choices' memories, prefixed by their places."""
        return {
            f"{place}.{name}": tensor
            for place, choice in enumerate(self.choices)
            for name, tensor in choice.init(layout).items()
        }

    def size(self, layout: Layout) -> int | None:
        """It depends on the choice."""
        return None

    def most(self, layout: Layout) -> int:
        """Of the longest choice."""
        return _PLACE_BYTES + max(choice.most(layout) for choice in self.choices)

    def place(self, layout: Layout, link: Link | None) -> int:
        """Which of them a node takes, by the most bytes that each of them can need.

        Args:
            link: What the node knows of its link; None: nothing.
        """
        allowed = math.inf if self.most_bytes is None else float(self.most_bytes)
        if self.seconds is not None:
            allowed = min(allowed, 0.0 if link is None else link.within(self.seconds))
        fitting = (place for place, choice in enumerate(self.choices) if _PLACE_BYTES + choice.most(layout) <= allowed)
        return next(fitting, len(self.choices) - 1)

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """The bytes that a node without a measured link sends."""
        return self.encode_at(self.place(shared.layout, None), state, vector, shared, rng)

    def encode_at(
        self, place: int, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """The bytes of the choice at a place, after the place."""
        prefix = f"{place}."
        own: State = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        own, data = self.choices[place].encode(own, vector, shared, rng)
        after = {**state, **{f"{prefix}{name}": tensor for name, tensor in own.items()}}
        return after, b"".join((place.to_bytes(_PLACE_BYTES, "little"), data))

    def decode(self, encoded: Encoded, shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop`, by the codec that the first byte names."""
        place = int.from_bytes(encoded.read(0, _PLACE_BYTES), "little")
        if encoded.size < _PLACE_BYTES or place >= len(self.choices):
            raise ValueError("the first byte names no codec")
        return self.choices[place].decode(Section(encoded, _PLACE_BYTES, encoded.size), shared, start, stop)


@dataclass(frozen=True)
class _Linked(Fitted):
    """`Fitted` on a node whose link is known."""

    link: Link | None = None

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        return self.encode_at(self.place(shared.layout, self.link), state, vector, shared, rng)


def fitted(codec: Codec, link: Link | None) -> Codec:
    """A codec as a node with such a link uses it; it decodes as before."""
    if isinstance(codec, Remembering):
        return replace(codec, codec=fitted(codec.codec, link))  # type: ignore[type-var]  # they are dataclasses
    if isinstance(codec, Fitted):
        return _Linked(codec.choices, codec.seconds, codec.most_bytes, link)
    return codec
