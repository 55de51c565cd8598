"""Matrices as products of two thin ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout, Slot
from koinon.core.types import Spec, Vector
from koinon.update.codec import Claims, Composable, Encoded, Shared, floats_as_bytes, read_floats
from koinon.update.stage import State


@dataclass(frozen=True)
class _Place:
    """Where a tensor's factors, or the tensor itself, lie among the floats that travel.

    Attributes:
        rows, columns: Of its matrix: the first dimension, and all others together.
        rank: Of its factors; 0 if it travels as it is.
        start: Of P `[rows, rank]`, behind which Q `[columns, rank]` lies, or of the tensor.
    """

    slot: Slot
    rows: int
    columns: int
    rank: int
    start: int

    @property
    def middle(self) -> int:
        return self.start + self.rank * self.rows

    @property
    def stop(self) -> int:
        if self.rank == 0:
            return self.start + self.slot.stop - self.slot.start
        return self.middle + self.rank * self.columns


@dataclass(frozen=True)
class LowRank(Composable):
    """Each tensor of two or more dimensions as P Qᵀ of some rank, by one step of power iteration from the last round's Q.

    A tensor for which that is not shorter travels as it is. What it becomes is its projection on P's columns, so it is
    never farther away than 0, but nothing more is claimed: use it in `ErrorFeedback`. The Q of the last round is a
    client's memory.

    Source: Vogels et al., "PowerSGD: practical low-rank gradient compression for distributed optimization" (2019).

    Attributes:
        rank: Columns of P and Q, >= 1.

    Raises:
        AdmissionError: if `rank` is less than 1.
    """

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise AdmissionError(f"LowRank needs a rank of at least 1, not {self.rank}")

    @property
    def claims(self) -> Claims:
        """A projection, on what was largest a round ago."""
        return Claims(kept=0.0)

    def following(self, first: Composable) -> Composable:
        """Refused: what comes before leaves no matrices."""
        raise AdmissionError(f"{type(first).__name__} leaves no tensors, which LowRank needs; use LowRank alone")

    def admit(self, spec: Spec) -> Spec:
        """A projection is no longer than what it is of.

        Raises:
            AdmissionError: beside the server's noise, which accounts for one round's data in one round's update.
        """
        if spec.central_noise:
            raise AdmissionError(
                "LowRank starts from a memory of earlier rounds, for which the server's noise does not account; use "
                "Eden or Quantize, which have none"
            )
        return self.claims.of(spec)

    def init(self, layout: Layout) -> State:
        """Zeros in place of each Q, the first of which is drawn."""
        return {
            f"q{number}": torch.zeros(place.columns, place.rank)
            for number, place in enumerate(self._places(layout))
            if place.rank
        }

    def size(self, layout: Layout) -> int | None:
        """Follows from the shapes."""
        return self.most(layout)

    def most(self, layout: Layout) -> int:
        """Follows from the shapes."""
        return 4 * max((place.stop for place in self._places(layout)), default=0)

    def encode(
        self, state: State, vector: Vector, shared: Shared, rng: torch.Generator
    ) -> tuple[State, bytes | memoryview]:
        """The factors of every matrix."""
        after, pieces = dict[str, torch.Tensor](), []
        for number, place in enumerate(self._places(shared.layout)):
            tensor = vector[place.slot.start : place.slot.stop]
            if place.rank == 0:
                pieces.append(tensor)
                continue
            start = state[f"q{number}"]
            if not start.any():
                start = torch.randn(start.shape, generator=rng)
            matrix = tensor.view(place.rows, place.columns)
            columns, _ = torch.linalg.qr(matrix @ start)
            weights = matrix.T @ columns
            pieces += [columns.reshape(-1), weights.reshape(-1)]
            after[f"q{number}"] = weights if weights.any() else start
        return after, floats_as_bytes(torch.cat([*pieces, torch.empty(0)]))

    def decode(self, encoded: Encoded, shared: Shared, start: int, stop: int) -> Vector:
        """Elements `start .. stop`, from the rows of P that they need, and Q."""
        expected = self.most(shared.layout)
        if encoded.size != expected:
            raise ValueError(f"{encoded.size} bytes where {expected} were expected")
        vector = torch.empty(stop - start)
        for place in self._places(shared.layout):
            low, high = max(start, place.slot.start), min(stop, place.slot.stop)
            if low < high:
                within = _decoded(encoded, place, low - place.slot.start, high - place.slot.start)
                vector[low - start : high - start] = within
        return vector

    def _places(self, layout: Layout) -> Iterator[_Place]:
        start = 0
        for slot in layout.slots:
            rows = slot.shape[0] if slot.shape else 1
            columns = prod(slot.shape[1:])
            rank = self.rank if self.rank * (rows + columns) < rows * columns else 0
            place = _Place(slot, rows, columns, rank, start)
            yield place
            start = place.stop


def _decoded(encoded: Encoded, place: _Place, start: int, stop: int) -> Vector:
    """Elements `start .. stop` of one tensor."""
    if place.rank == 0:
        return read_floats(encoded, place.start + start, place.start + stop)
    first, last = start // place.columns, -(-stop // place.columns)
    columns = read_floats(encoded, place.start + first * place.rank, place.start + last * place.rank)
    weights = read_floats(encoded, place.middle, place.stop).view(-1, place.rank)
    rows = columns.view(-1, place.rank) @ weights.T
    return rows.view(-1)[start - first * place.columns : stop - first * place.columns]
