"""Rules that trust a little data of the server's own."""

import math
from dataclasses import dataclass

import torch

from koinon.aggregate.geometry import COLUMNS, combined
from koinon.aggregate.reducer import Memory, Round, Rows, block
from koinon.aggregate.rule import ContextualRule, Rule
from koinon.core.errors import AdmissionError
from koinon.core.types import Vector


@dataclass(frozen=True, eq=False)
class FLTrust(ContextualRule):
    """Updates count by how far they point the same way as the server's own, at its length.

    Source: Cao et al., "FLTrust: Byzantine-robust federated learning via trust bootstrapping" (2021), algorithm 2.

    Attributes:
        root: The server's data: samples, or a callable without arguments that loads them, so that nodes never do. It
            trains on them as a client would.
    """

    root: object

    @property
    def least(self) -> int:
        """1."""
        return 1

    def tolerates(self, updates: int) -> int:
        """All but one, if the root data are like the clients'."""
        return updates - 1

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The mean by trust; 0 if nobody is trusted."""
        self.check(len(rows.weights))
        inner, squares, root = _against(self, rows, round)
        lengths, own = squares.sqrt().clamp(min=1e-300), math.sqrt(root)
        trust = (inner / (lengths * max(own, 1e-300))).clamp(min=0.0)
        return memory, combined(rows, trust / max(float(trust.sum()), 1e-300) * own / lengths)


@dataclass(frozen=True, eq=False)
class Zeno(ContextualRule):
    """The mean without the f updates that, by the server's own data, lower the loss least.

    The score is the first-order one of Zeno++: the product with the server's own update, less `rho` times its squared norm.

    Source: Xie, Koyejo, Gupta, "Zeno: distributed stochastic gradient descent with suspicion-based fault-tolerance" (2019),
    algorithm 1; "Zeno++: robust fully asynchronous SGD" (2020), definition 2.

    Attributes:
        root: As in `FLTrust`.
        f: How many are left out, >= 0.
        rho: What length costs, >= 0.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    root: object
    f: int
    rho: float = 1e-3

    def __post_init__(self) -> None:
        if self.f < 0 or not (self.rho >= 0 and math.isfinite(self.rho)):
            raise AdmissionError(f"Zeno needs f and rho of at least 0, not {self.f} and {self.rho}")

    @property
    def least(self) -> int:
        """One more than are left out."""
        return self.f + 1

    def tolerates(self, updates: int) -> int:
        """f, if the root data are like the clients'."""
        return min(self.f, updates - 1)

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """The mean of the best."""
        count = len(rows.weights)
        self.check(count)
        inner, squares, _ = _against(self, rows, round)
        kept = (inner - self.rho * squares).argsort(descending=True, stable=True)[: count - self.f]
        weights = torch.zeros(count, dtype=torch.float64)
        weights[kept] = 1 / len(kept)
        return memory, combined(rows, weights)


def _against(rule: Rule, rows: Rows, round: Round) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Products of the rows with the server's own update, their squared norms, and its own."""
    if round.root is None:
        raise ValueError(f"{type(rule).__name__} needs the server's own update; call it in a federation")
    count = len(rows.weights)
    inner, squares = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for start in range(0, rows.length, COLUMNS):
        stop = min(start + COLUMNS, rows.length)
        values = block(rows, start, stop).double()
        inner += values @ round.root[start:stop].double()
        squares += values.square().sum(1)
    return inner, squares, float(round.root.double().square().sum())
