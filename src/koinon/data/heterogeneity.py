"""How unlike clients are: in what they hold of each class, and in how much they hold."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from koinon.core.types import ClientId
from koinon.data.partition import class_targets
from koinon.data.population import Population

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Heterogeneity:
    """What each client holds of each class.

    Attributes:
        clients: The clients, in canonical order.
        classes: The classes, sorted.
        counts: Examples to train on, int64 `[clients, classes]`.
    """

    clients: tuple[ClientId, ...]
    classes: tuple[int, ...]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, population: Population) -> "Heterogeneity":
        """Count what every client trains on; one client's data is made at a time.

        Raises:
            AdmissionError: if the targets are not classes.
        """
        held = [_held(population, client) for client in population.ids]
        classes = sorted(set().union(*held))
        counts = np.array([[each.get(label, 0) for label in classes] for each in held], dtype=np.int64)
        return cls(tuple(population.ids), tuple(classes), counts)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Examples of each client, int64 `[clients]`."""
        sizes: npt.NDArray[np.int64] = self.counts.sum(1)
        return sizes

    @property
    def mixtures(self) -> Floats:
        """Share of each class in a client's examples, float64 `[clients, classes]`."""
        mixtures: Floats = self.counts / np.maximum(self.sizes, 1)[:, None]
        return mixtures

    @property
    def label_distance(self) -> float:
        """Share of its examples that a client would have to exchange to hold all clients' mixture of classes.

        The total variation distance between a client's mixture and that of all, on average by the clients' sizes: 0 where all are
        alike, 1 - 1 / classes where each holds one class and all are equally large.
        """
        everybody = self.counts.sum(0) / self.counts.sum()
        distances = np.abs(self.mixtures - everybody).sum(1) / 2
        return float(distances @ self.sizes / self.sizes.sum())

    @property
    def effective_clients(self) -> float:
        """How many clients of equal size a mean by examples is worth: 1 / Σ (share of the examples)².

        Source: Kish, "Survey sampling" (1965), the effective sample size.
        """
        return float(self.sizes.sum() ** 2 / (self.sizes.astype(np.float64) ** 2).sum())

    @property
    def effective_classes(self) -> float:
        """How many equally frequent classes a client's mixture is worth, exp of its entropy, on average by size."""
        mixtures = self.mixtures
        logarithms = np.log(mixtures, out=np.zeros_like(mixtures), where=mixtures > 0)
        return float(np.exp(-(mixtures * logarithms).sum(1)) @ self.sizes / self.sizes.sum())

    def summary(self) -> Mapping[str, object]:
        """The measures in one JSON object."""
        sizes = self.sizes
        return {
            "clients": len(self.clients),
            "classes": len(self.classes),
            "examples": int(sizes.sum()),
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes)),
            "largest": int(sizes.max()),
            "label_distance": round(self.label_distance, 4),
            "effective_clients": round(self.effective_clients, 1),
            "effective_classes": round(self.effective_classes, 2),
        }


def _held(population: Population, client: ClientId) -> dict[int, int]:
    values, counts = np.unique(class_targets(population[client].train), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
