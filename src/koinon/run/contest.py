"""Runs side by side: what each came to, and what it cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

from koinon.core.errors import AdmissionError
from koinon.durable.history import RoundRecord, RunInfo
from koinon.run.private import better, judged_by

By: TypeAlias = Literal["rounds", "seconds", "megabytes", "clock"]
"""What a metric is compared by: rounds, seconds that they took, bytes that all clients sent, or virtual seconds."""

AXES: Mapping[By, str] = {
    "rounds": "round", "seconds": "seconds", "megabytes": "MB that all clients have sent", "clock": "virtual seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Contestant:
    """One run's course.

    Attributes:
        info: What it is.
        history: Its closed rounds.
    """

    info: RunInfo
    history: Sequence[RoundRecord]

    def points(self, metric: str, by: By) -> list[tuple[float, float]]:
        """(cost, value) after every round in which the metric was measured."""
        costs = accumulate(map(_COSTS[by], self.history)) if by != "clock" else map(_COSTS[by], self.history)
        return [
            (cost, record.metrics[metric])
            for cost, record in zip(costs, self.history, strict=True)
            if metric in record.metrics
        ]

    def row(self, metric: str) -> dict[str, object]:
        """What it came to, for a table or as JSON."""
        points = self.points(metric, "rounds")
        row: dict[str, object] = {"id": self.info.id, "app": self.info.app, "status": self.info.status}
        row |= {"rounds": len(self.history), metric: points[-1][1] if points else None}
        if points:
            wins = better(metric)
            best = points[0]
            for point in points:
                best = point if wins(point[1], best[1]) else best
            row |= {f"best {metric}": best[1], "after round": int(best[0])}
        row |= {"MB up": sum(record.bytes_up for record in self.history) / 1e6}
        row |= {"seconds": sum(record.seconds for record in self.history)}
        if self.history and self.history[-1].clock_s is not None:
            row["virtual seconds"] = self.history[-1].clock_s
        return row


_COSTS: Mapping[By, Callable[[RoundRecord], float]] = {
    "rounds": lambda record: 1,
    "seconds": lambda record: record.seconds,
    "megabytes": lambda record: record.bytes_up / 1e6,
    "clock": lambda record: record.clock_s or 0.0,
}


def metric_of(contestants: Sequence[Contestant], wanted: str | None) -> str:
    """The metric to compare: the wanted one, or the first score that all have.

    Raises:
        AdmissionError: if there is none that all have.
    """
    known = [{name for record in each.history for name in record.metrics} for each in contestants]
    for each, names in zip(contestants, known, strict=True):
        if wanted is not None and wanted not in names:
            raise AdmissionError(
                f"run {each.info.id} has no {wanted}; it has {', '.join(sorted(names)) or 'no evaluation'}"
            )
    shared = set.intersection(*known)
    if not shared:
        raise AdmissionError("these runs have no metric in common; give them an Evaluation(test=…)")
    return judged_by(sorted(shared), wanted)
