"""Everything about a round's updates that distances tell, from one pass over them.

Distances are small differences of large numbers: with weights near each other and far from the origin, an uncentred
Gram matrix in float32 is wrong by several times its value. So updates are centred block by block, and products are added
up in float64; where liars far away leave float32 too few digits for the others, it is all done in float64. The origin is
carried along as one more point, so that norms and angles can be read off as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from koinon.aggregate.reducer import Rows, block
from koinon.core.types import Vector

COLUMNS, CELLS = 1024, 1 << 17
"""Columns at a time, and numbers at a time where rows are few: 0.8 MB of float64 for a hundred rows, which the cache
holds. A quarter slower with four times as many."""


@dataclass(frozen=True)
class Geometry:
    """Inner products of n points and of the origin, the last, about a common centre; float64 `[n + 1, n + 1]`."""

    products: torch.Tensor

    @property
    def squared(self) -> torch.Tensor:
        """Squared distances between the points; `[n, n]`, zero on the diagonal."""
        return _distances(self.products)[:-1, :-1]

    @property
    def norms(self) -> torch.Tensor:
        """Each point's L2 norm; `[n]`."""
        return _distances(self.products)[:-1, -1].sqrt()

    @property
    def cosines(self) -> torch.Tensor:
        """Cosines between the points, 0 with a point of norm 0; `[n, n]`."""
        own = self.products[:-1, :-1]
        across, last = self.products[:-1, -1:], self.products[-1, -1]
        inner = own - across - across.T + last
        lengths = self.norms.clamp(min=torch.finfo(torch.float64).tiny)
        return (inner / lengths[:, None] / lengths).clamp(-1.0, 1.0)

    def to(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Squared distance of each point to Σ coefficients · points; `[n]`. What they lack of 1 is the origin's."""
        weights = torch.cat((coefficients, 1 - coefficients.sum(-1, keepdim=True)))
        mixed = self.products @ weights
        return (self.products.diagonal() - 2 * mixed + weights @ mixed)[:-1].clamp(min=0.0)

    def mixed(self, matrix: torch.Tensor) -> "Geometry":
        """Of the m points `matrix` `[m, n]` · points."""
        rest = 1 - matrix.sum(1, keepdim=True)
        origin = torch.zeros(1, matrix.shape[1] + 1, dtype=torch.float64)
        origin[0, -1] = 1.0
        whole = torch.cat((torch.cat((matrix, rest), 1), origin))
        return Geometry(whole @ self.products @ whole.T)


def geometry(rows: Rows) -> Geometry:
    """The geometry of the rows; one pass over them."""
    if isinstance(rows, Mixture):
        return geometry(rows.rows).mixed(rows.matrix)
    found = Geometry(_products(rows, torch.float32))
    return found if _precise(found) else Geometry(_products(rows, torch.float64))


def _products(rows: Rows, precision: torch.dtype) -> torch.Tensor:
    """Block by block: centred and multiplied in a precision, added up in float64."""
    from scipy.linalg.blas import dsyrk, ssyrk

    count = len(rows.weights)
    multiplied = dsyrk if precision is torch.float64 else ssyrk  # half of a symmetric product is half the work
    even = torch.full((count,), 1 / count, dtype=precision)
    products = np.zeros((count + 1, count + 1))
    step = max(COLUMNS, CELLS // count)
    points = torch.empty(count + 1, step, dtype=precision)
    for start in range(0, rows.length, step):
        stop = min(start + step, rows.length)
        part = points[:, : stop - start]
        values = block(rows, start, stop).to(precision)
        torch.mv(values.T, even, out=part[-1])
        torch.sub(values, part[-1], out=part[:-1])
        part[-1].neg_()
        products += multiplied(1.0, part.numpy().T, trans=1)
    return torch.from_numpy(np.triu(products) + np.triu(products, 1).T)


def _precise(found: Geometry) -> bool:
    """Whether no point is so much farther from the centre than others are from each other that float32 loses these."""
    squared = found.squared
    apart = squared[squared > 0]
    return len(apart) > 0 and float(found.products[:-1, :-1].diagonal().max()) <= 64 * float(apart.min())


def combined(rows: Rows, coefficients: torch.Tensor) -> Vector:
    """Σ coefficients · rows, added up in float64; one pass over them. Float32 `[D]`.

    Args:
        coefficients: Float64 `[n]`.
    """
    result = torch.empty(rows.length)
    used = torch.nonzero(coefficients).flatten()
    for start in range(0, rows.length, COLUMNS):
        stop = min(start + COLUMNS, rows.length)
        values = block(rows, start, stop)
        values = values if len(used) == len(values) else values[used]
        result[start:stop] = coefficients[used] @ values.to(torch.float64)
    return result


def mean_of(rows: Rows, chosen: Sequence[int]) -> Vector:
    """The mean of some rows."""
    coefficients = torch.zeros(len(rows.weights), dtype=torch.float64)
    coefficients[list(chosen)] = 1 / len(chosen)
    return combined(rows, coefficients)


@dataclass(frozen=True)
class Mixture:
    """Linear combinations of rows, themselves rows; made block by block, never kept.

    Attributes:
        rows: What is mixed.
        matrix: Float64 `[m, n]`: the coefficients of each new row.
    """

    rows: Rows
    matrix: torch.Tensor

    @property
    def length(self) -> int:
        """D, the number of columns."""
        return self.rows.length

    @property
    def weights(self) -> Sequence[float]:
        """All alike."""
        return [1.0] * len(self.matrix)

    def columns(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Columns `start .. stop` of each combination in turn."""
        return iter((self.matrix @ block(self.rows, start, stop).to(torch.float64)).to(torch.float32))


def _distances(products: torch.Tensor) -> torch.Tensor:
    squares = products.diagonal()
    found = (squares[:, None] + squares - 2 * products).clamp(min=0.0)
    return found.fill_diagonal_(0.0)
