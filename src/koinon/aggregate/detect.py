"""Who lies: scores of a round's updates, suspicion that adds up over rounds, and a quarantine that ends by itself.

Nothing here bans anybody at once. A round's score says how unlike the others an update is; suspicion is what scores above
the usual add up to, and fades. A client is left out while its suspicion is high, goes on being watched, and comes back.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from koinon.aggregate.geometric import GeometricMedian
from koinon.aggregate.geometry import Geometry, Mixture, geometry
from koinon.aggregate.reducer import Memory, Round, Rows, reduced
from koinon.aggregate.rule import Around
from koinon.core.errors import AdmissionError
from koinon.core.types import ClientId, Vector

FEATURES = ("length", "distance", "angle", "neighbour", "twin", "direction")
"""What is looked at: log norm, distance from the geometric median, angle to it, distance to the nearest third of the others,
nearness of the nearest other, and share in the direction in which all vary most."""

_MAD = 1.4826
"""A normal deviation / its median absolute deviation."""

_SUSPICION, _THEN = "suspicion.", "then."


def scores(found: Geometry) -> torch.Tensor:
    """How unlike the others each update is: the greatest of its features' robust z-scores; float64 `[n]`, >= 0."""
    return _z(features(found)).max(1).values


def features(found: Geometry) -> torch.Tensor:
    """The features of each update, in the order of `FEATURES`; larger is more suspicious. Float64 `[n, 6]`."""
    count = len(found.products) - 1
    weights = GeometricMedian(steps=50).weights(found)
    away = found.to(weights).sqrt()
    norms = found.norms.clamp(min=1e-30)
    centre = weights @ _inner(found) @ weights
    along = (_inner(found) @ weights) / (norms * centre.clamp(min=1e-60).sqrt())
    apart = found.squared.sqrt()
    apart.fill_diagonal_(math.inf)
    nearest = apart.sort(1).values
    near = nearest[:, : max(count // 3, 1)].mean(1)
    columns = (
        (norms.log() - norms.log().median()).abs(),
        away.log(),
        -along,
        near.log(),
        -(nearest[:, 0] / away.clamp(min=1e-30)).clamp(1e-9).log(),
        _direction(found, weights),
    )
    return torch.stack([column.nan_to_num(nan=0.0, posinf=100.0, neginf=-100.0) for column in columns], 1)


@dataclass(frozen=True)
class Quarantine(Around):
    """A rule on the updates of those that are not suspected.

    Suspicion is a cumulative sum: each round it fades by `fading`, grows by the round's score, at most `most`, and shrinks by
    `usual`. From `limit` on a client is left out; at half of it, it is back.

    Source: for the sum Page, "Continuous inspection schemes" (1954); scores are by median and median absolute deviation.

    Attributes:
        then: The rule for the others.
        usual: The score that an honest client has now and then, in robust deviations, > 0.
        limit: Suspicion from which a client is left out, > 0.
        most: The largest score that counts; less than `usual` + `limit`, so that no single round is enough.
        fading: What is left of suspicion after a round, in (0, 1).

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    usual: float = 5.0
    limit: float = 8.0
    most: float = 12.0
    fading: float = 0.9

    def __post_init__(self) -> None:
        if not (0 < self.usual < self.most < self.usual + self.limit and 0 < self.fading < 1):
            raise AdmissionError(
                "Quarantine needs 0 < usual < most < usual + limit and fading between 0 and 1; leave them out for the usual"
            )

    @property
    def least(self) -> int:
        """As the rule, and 3, of which one can be unlike the others."""
        return max(3, super().least)

    def start(self, length: int) -> Memory:
        """The rule's memory, and nobody suspected."""
        return {f"{_THEN}{name}": tensor for name, tensor in super().start(length).items()}

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """Score all, suspect some, and reduce the others; as many stay as the rule needs, the least suspected first."""
        self.check(len(rows.weights))
        scored = scores(geometry(rows)).clamp(max=self.most)
        suspected = self._suspected(memory, round.clients, scored)
        kept = self._kept(suspected, memory, round.clients)
        matrix = torch.eye(len(round.clients), dtype=torch.float64)[kept]
        clients = tuple(round.clients[row] for row in kept)
        inner: Memory = {name.removeprefix(_THEN): tensor for name, tensor in memory.items() if name.startswith(_THEN)}
        known = Round(round.number, clients, round.rng, round.root)
        inner, total = reduced(self.then, inner, Mixture(rows, matrix), known)
        following = {name: tensor for name, tensor in memory.items() if name.startswith(_SUSPICION)}
        for row, client in enumerate(round.clients):
            held = float(row not in kept)
            following[_SUSPICION + client] = torch.tensor([suspected[client], float(scored[row]), held])
        return following | {f"{_THEN}{name}": tensor for name, tensor in inner.items()}, total

    def report(self, memory: Memory) -> dict[ClientId, Mapping[str, float]]:
        """What is known of each client after its last round: its suspicion, its score, and whether it was left out."""
        return {
            name.removeprefix(_SUSPICION): dict(zip(("suspicion", "score", "left_out"), tensor.tolist(), strict=True))
            for name, tensor in memory.items()
            if name.startswith(_SUSPICION)
        }

    def _suspected(self, memory: Memory, clients: tuple[ClientId, ...], scored: torch.Tensor) -> dict[ClientId, float]:
        found = {}
        for client, score in zip(clients, scored.tolist(), strict=True):
            before = float(memory[_SUSPICION + client][0]) if _SUSPICION + client in memory else 0.0
            found[client] = max(0.0, self.fading * before + score - self.usual)
        return found

    def _kept(self, suspected: Mapping[ClientId, float], memory: Memory, clients: tuple[ClientId, ...]) -> list[int]:
        def out(client: ClientId) -> bool:
            was_out = _SUSPICION + client in memory and float(memory[_SUSPICION + client][2]) > 0
            return suspected[client] >= (self.limit / 2 if was_out else self.limit)

        needed = super().least
        kept = [row for row, client in enumerate(clients) if not out(client)]
        if len(kept) < needed:
            order = sorted(range(len(clients)), key=lambda row: suspected[clients[row]])
            kept = sorted(order[:needed])
        return kept


def estimate(report: Mapping[ClientId, Mapping[str, float]], limit: float = 8.0) -> tuple[float, float]:
    """How many clients lie, and the deviation of that: each does with a chance that suspicion makes; one half at `limit`."""
    chances = [1 / (1 + math.exp(min(50.0, limit - 2 * (each["suspicion"] - limit / 2)))) for each in report.values()]
    return sum(chances), math.sqrt(sum(chance * (1 - chance) for chance in chances))


def _z(values: torch.Tensor) -> torch.Tensor:
    """How far above the median, in robust deviations; 0 below it. A tenth of the range stands in where half are equal."""
    middle = values.median(0).values
    deviation = _MAD * (values - middle).abs().median(0).values
    spread = 0.01 * (values.max(0).values - values.min(0).values)
    return ((values - middle) / deviation.clamp(min=spread.clamp(min=1e-12))).clamp(min=0.0)


def _inner(found: Geometry) -> torch.Tensor:
    """Products of the updates about the origin; `[n, n]`."""
    across, last = found.products[:-1, -1:], found.products[-1, -1]
    return found.products[:-1, :-1] - across - across.T + last


def _direction(found: Geometry, weights: torch.Tensor) -> torch.Tensor:
    """Each update's share, in absolute value, in the first principal direction about the geometric median."""
    own = found.products[:-1, :-1]
    shift = own @ weights
    centred = own - shift[:, None] - shift + weights @ shift
    values, vectors = torch.linalg.eigh(centred)
    along: torch.Tensor = vectors[:, -1].abs() * values[-1].clamp(min=0.0).sqrt()
    return along
