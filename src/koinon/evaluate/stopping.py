"""When a run has trained enough, though rounds are left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from koinon.core.errors import AdmissionError


@dataclass(frozen=True)
class EarlyStopping:
    """A run ends when a metric of the server's test set is good enough, or has not become better for long.

    What has been evaluated so far decides, and it is in the run's record: a server that was killed stops where it would have.

    Attributes:
        metric: Its name, as evaluations tell it, such as "accuracy" or "loss".
        patience: Evaluations without a better value after which the run ends, >= 1.
        min_delta: By how much a value must be better to count, >= 0.
        mode: "max" where more is better, "min" where less is.
        threshold: A value that is good enough; None for none.

    Raises:
        AdmissionError: if a number is out of its bounds.
    """

    metric: str
    patience: int = 10
    min_delta: float = 0.0
    mode: Literal["max", "min"] = "max"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.patience < 1 or not 0 <= self.min_delta < math.inf:
            raise AdmissionError(
                f"early stopping needs a patience of at least 1 and a finite min_delta of at least 0: {self}"
            )
        if self.mode not in ("max", "min"):
            raise AdmissionError(f'early stopping looks for the "max" or the "min" of a metric, not {self.mode!r}')

    def enough(self, course: Sequence[Mapping[str, float]]) -> str:
        """Why these evaluations, the oldest first, are enough; empty if they are not.

        Raises:
            AdmissionError: if there is no such metric.
        """
        sign = 1.0 if self.mode == "max" else -1.0
        best, since = -math.inf, 0
        for metrics in course:
            if self.metric not in metrics:
                raise AdmissionError(
                    f"early stopping looks at {self.metric}, and the server measures {', '.join(sorted(metrics)) or 'nothing'}"
                )
            value = sign * metrics[self.metric]
            if self.threshold is not None and value >= sign * self.threshold:
                return f"{self.metric} is {sign * value:g}, and {self.threshold:g} is enough"
            better = value > best + self.min_delta
            best, since = (value, 0) if better else (best, since + 1)
            if since >= self.patience:
                return f"{self.metric} has not been better than {sign * best:g} in {since} evaluations"
        return ""


class Course:
    """The server's evaluations of a run, as far as it has come.

    Args:
        stop: What decides whether they are enough; None: they never are.
        evaluated: Values of the metrics, by the round after which they were measured.
    """

    def __init__(self, stop: EarlyStopping | None, evaluated: Mapping[int, Mapping[str, float]]) -> None:
        self._stop, self._evaluated = stop, dict(evaluated)

    def enough(self) -> str:
        """Why no more rounds are wanted; empty if they are."""
        return (
            "" if self._stop is None else self._stop.enough([self._evaluated[each] for each in sorted(self._evaluated)])
        )

    def after(self, round: int, metrics: Mapping[str, float]) -> str:
        """The same after one more round, of which nothing may have been measured."""
        if metrics:
            self._evaluated[round] = metrics
        return self.enough()
