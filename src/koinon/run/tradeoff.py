"""What protection costs: an app as it is, and with noise by the server, by each client and for each record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from koinon.data.population import Population
from koinon.federation import Federation
from koinon.privacy.accountant import Guarantee, Unit
from koinon.run.private import Study, judged_by
from koinon.run.result import Run

EPSILONS = (1.0, 4.0, 8.0)


@dataclass(frozen=True)
class Line:
    """One training.

    Attributes:
        protection: Who adds noise, in words.
        unit: Whom it protects; None without noise.
        asked: The epsilon that it was to spend.
        guarantee: What it spent; None without noise, or where it cannot be.
        metrics: Of the last model; None where a value was not finite.
        seconds: How long it took.
        bytes_up: Bytes that clients sent.
        bytes_down: Bytes that clients were sent.
        failure: Why it cannot be, or empty.
    """

    protection: str
    unit: Unit | None = None
    asked: float | None = None
    guarantee: Guarantee | None = None
    metrics: dict[str, float | None] | None = None
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    failure: str = ""

    def value(self, metric: str) -> float | None:
        """Of the last model; None where there is none."""
        return (self.metrics or {}).get(metric)


@dataclass(frozen=True)
class Tradeoff:
    """The trainings, and the metric by which they are compared."""

    metric: str
    lines: tuple[Line, ...]


NOISES: tuple[tuple[str, Unit], ...] = (
    ("the server", "client"),
    ("each client", "client"),
    ("each client, on its records", "record"),
)


def tradeoff(
    federation: Federation,
    population: Population,
    folder: Path,
    *,
    delta: float,
    epsilons: Sequence[float] = EPSILONS,
    rate: float = 0.1,
    clip_norm: float | None = None,
    metric: str | None = None,
    seed: int = 0,
    tell: Callable[[Line], None] = lambda line: None,
) -> Tradeoff:
    """Train the app without protection, then with each at every epsilon.

    Args:
        delta: Of the guarantees.
        epsilons: What each protection is to spend on all rounds.
        rate: A client's chance to take part in a round, for noise by the server.
        clip_norm: Largest L2 norm of an update; None: half the median, from a pilot without noise.
        metric: What is compared; None takes the app's first score.
        tell: Is told of every training.

    Raises:
        AdmissionError: if the app has no test set on the server, or adds noise itself.
        ClientFailed: if it cannot be trained as it is.
    """
    study = Study(federation, population, delta, seed, folder / "run")
    plain = _line(study, Line("nobody"), study.plain())
    assert plain.metrics is not None
    metric = judged_by(plain.metrics, metric)
    tell(plain)
    norm = clip_norm if clip_norm is not None else study.pilot(rate)[1] / 2
    lines = [plain]
    for name, unit in NOISES:
        for epsilon in sorted(epsilons):
            lines.append(_attempted(study, Line(name, unit, epsilon), rate, norm))
            tell(lines[-1])
    return Tradeoff(metric, tuple(lines))


def _attempted(study: Study, line: Line, rate: float, clip_norm: float) -> Line:
    assert line.asked is not None
    epsilon = line.asked
    (server, _), (client, _), _ = NOISES

    def make() -> Federation:
        if line.protection == server:
            return study.central(epsilon, rate, clip_norm)
        return study.local(epsilon, clip_norm) if line.protection == client else study.record(epsilon)

    made = study.attempt(make)
    if isinstance(made, str):
        return Line(line.protection, line.unit, epsilon, failure=made)
    return _line(study, line, made[1])


def _line(study: Study, line: Line, run: Run) -> Line:
    return Line(
        line.protection,
        line.unit,
        line.asked,
        next(iter(run.guarantees.values()), None),
        study.values(run),
        run.seconds,
        sum(record.bytes_up for record in run.history),
        sum(record.bytes_down for record in run.history),
    )
