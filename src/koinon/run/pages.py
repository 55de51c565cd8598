"""What the studies of privacy found, as tables, advice and pages."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from koinon.run.tradeoff import NOISES, Line, Tradeoff
from koinon.run.tune import Trial, Tuned
from koinon.view import figures, study
from koinon.view.charts import Point
from koinon.view.page import write_page

Rows: TypeAlias = tuple[Sequence[str], list[tuple[str, ...]]]
"""Columns, and cells row by row."""


def publish_tuned(folder: Path, app: str, found: Tuned, clients: int, delta: float) -> Path:
    """Write the page of a search; returns where.

    Raises:
        Unavailable: if it cannot be written.
    """
    facts = (("Clients", figures.count(clients)), ("Delta", f"{delta:g}"), ("Trials", figures.count(len(found.trials))))
    tables = (
        study.numbers("The best setting of each epsilon", *tuned_rows(found.metric, found.frontier)),
        study.code(advice(found, clients, delta)),
        study.numbers("All trials", *tuned_rows(found.metric, found.trials)),
    )
    drawing = (found.metric, *_tuned_drawing(found))
    text = study.study_page("Koinon privacy tuning", app, facts, drawing, tables, (disclaimer(found),))
    path = folder / "tune.html"
    write_page(path, text)
    return path


def draw_tuned(folder: Path, found: Tuned) -> Path:
    """Draw the frontier as a PNG; returns where.

    Raises:
        Unavailable: if matplotlib is missing, or the file cannot be written.
    """
    path = folder / "tune.png"
    study.draw(path, found.metric, *_tuned_drawing(found))
    return path


def tuned_rows(metric: str, trials: Sequence[Trial]) -> Rows:
    """Trials in numbers."""
    return ("epsilon", metric or "metric", "clip norm", "noise multiplier", "rate"), [
        (
            "without noise" if trial.epsilon is None else f"{trial.epsilon:g}",
            trial.failure or _shown(trial.metrics.get(metric)),
            f"{trial.clip_norm:g}",
            f"{trial.noise_multiplier:g}",
            f"{trial.rate:g}",
        )
        for trial in trials
    ]


def advice(found: Tuned, clients: int, delta: float) -> str:
    """The chosen setting as Python, or why there is none."""
    trial = found.chosen
    if trial is None:
        return "# no epsilon that was tried reaches the target; give a larger --epsilon, more rounds or more clients"
    return (
        f"sample=kn.Poisson({trial.rate:g}),\n"
        f"stages=(kn.Clip({trial.clip_norm:g}), kn.GaussianNoise({trial.noise_multiplier:g}, "
        f"cohort={trial.rate * clients:g})),\n"
        f"budget=kn.Budget({trial.epsilon:g}, {delta:g}),  # of the federation, not of the strategy"
    )


def disclaimer(found: Tuned) -> str:
    """What the search itself is worth, on private data."""
    if found.pilot is None:
        cost = f"Together these trials spend {found.cost}, and choosing the best of them spends more."
    else:
        cost = "The pilot had no noise: on private data nothing bounds what the clip norm tells. Give clip norms to do without."
    return f"The search is not charged to any ledger: run it on public or made-up data like the private ones. {cost}"


def publish_tradeoff(folder: Path, app: str, found: Tradeoff, clients: int, delta: float) -> Path:
    """Write the page of a comparison; returns where.

    Raises:
        Unavailable: if it cannot be written.
    """
    curves = [(f"noise by {name}: epsilon per {unit}", _points(found, name)) for name, unit in NOISES]
    facts = (("Clients", figures.count(clients)), ("Delta", f"{delta:g}"))
    drawing = (found.metric, curves, (), found.lines[0].value(found.metric))
    remark = (
        "An epsilon for a record and one for a client are different promises and cannot be compared: the curves of a chart "
        "share an axis, not a meaning."
    )
    tables = (study.numbers("What protection costs", *tradeoff_rows(found)),)
    path = folder / "tradeoff.html"
    write_page(path, study.study_page("Koinon trade-off", app, facts, drawing, tables, (remark, *failures(found))))
    return path


def tradeoff_rows(found: Tradeoff) -> Rows:
    """The trainings in numbers."""
    columns = ("noise by", "epsilon", "analysis", found.metric, "time", "up", "down")
    return columns, [
        (
            line.protection,
            *_spent(line),
            _shown(line.value(found.metric)),
            figures.duration(line.seconds),
            figures.size(line.bytes_up),
            figures.size(line.bytes_down),
        )
        for line in found.lines
    ]


def failures(found: Tradeoff) -> list[str]:
    """What could not be trained, and why."""
    return [
        f"noise by {line.protection}, epsilon {line.asked:g}: {line.failure}" for line in found.lines if line.failure
    ]


def _spent(line: Line) -> tuple[str, str]:
    """Epsilon with its unit, and what it rests on."""
    if line.guarantee is None:
        return "unbounded" if line.asked is None else f"not {line.asked:g}", "–"
    guarantee = line.guarantee
    analysis = f"{guarantee.neighbours}, sampling {guarantee.sampling}, {guarantee.accountant}"
    return f"{guarantee.epsilon:.4g} per {guarantee.unit}", analysis


def _tuned_drawing(found: Tuned) -> tuple[list[study.Curve], list[Point], float | None]:
    level = None if found.pilot is None else found.pilot.metrics.get(found.metric)
    curve = _pairs((trial.epsilon, trial.metrics.get(found.metric)) for trial in found.frontier)
    dots = _pairs((trial.epsilon, trial.metrics.get(found.metric)) for trial in found.trials)
    return [("best setting", curve)], dots, level


def _points(found: Tradeoff, name: str) -> list[Point]:
    return _pairs((line.asked, line.value(found.metric)) for line in found.lines if line.protection == name)


def _pairs(pairs: Iterable[tuple[float | None, float | None]]) -> list[Point]:
    return [(epsilon, value) for epsilon, value in pairs if epsilon is not None and value is not None]


def _shown(value: float | None) -> str:
    return "–" if value is None else figures.value(value)
