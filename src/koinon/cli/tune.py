"""Commands that choose how to protect an app, and show what it costs: tune privacy, tradeoff."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from koinon.cli.options import RUNS, AppArgument, Json, Rounds, Runs, Seed, encoded, load
from koinon.core.errors import Unavailable
from koinon.federation import DELTA
from koinon.run import pages
from koinon.run.tradeoff import EPSILONS, Line
from koinon.run.tradeoff import tradeoff as run_tradeoff
from koinon.run.tune import EPSILONS as LADDER
from koinon.run.tune import RATES, Search, Trial, Tuned, tune
from koinon.view import figures

app = typer.Typer(help="Search for settings.", no_args_is_help=True)

Clients: TypeAlias = Annotated[int | None, typer.Option(help="Clients, instead of the app's number.")]
Epsilons: TypeAlias = Annotated[
    list[float] | None, typer.Option("--epsilon", help="To spend; give several for a curve.")
]
Delta: TypeAlias = Annotated[float, typer.Option(help="Of every guarantee; less than 1 / clients.")]
Metric: TypeAlias = Annotated[str | None, typer.Option(help="What is compared; the app's first score by default.")]


@app.command("privacy")
def privacy(
    app: AppArgument,
    epsilon: Epsilons = None,
    target: Annotated[
        float | None, typer.Option(help="A value of the metric: ends at the epsilon that reaches it.")
    ] = None,
    metric: Metric = None,
    rate: Annotated[list[float] | None, typer.Option(help="A client's chance to be in a round; give several.")] = None,
    clip: Annotated[list[float] | None, typer.Option(help="Clip norms to try, instead of seeking them.")] = None,
    delta: Delta = DELTA,
    clients: Clients = None,
    rounds: Rounds = None,
    seed: Seed = 0,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Seek noise, clip and cohort that give the best model for an epsilon; for public data like the private ones."""
    loaded = load(app, rounds)
    population = loaded.clients(clients)
    norms = None if clip is None else tuple(clip)
    search = Search(tuple(epsilon or LADDER), tuple(rate or RATES), norms, metric, target)
    folder = runs / f"tune-{Path(app).stem}"
    found = tune(loaded.federation, population, search, folder, delta=delta, seed=seed, tell=_tell_trial)
    page = pages.publish_tuned(folder, app, found, len(population), delta)
    picture = _drawn(folder, found)
    if json:
        summary = {
            "metric": found.metric,
            "frontier": found.frontier,
            "chosen": found.chosen,
            "trials": len(found.trials),
        }
        print(encoded({**summary, "cost": str(found.cost), "page": str(page), "picture": picture}))
        return
    _print(f"Best {found.metric} by epsilon", *pages.tuned_rows(found.metric, found.frontier))
    print(pages.advice(found, len(population), delta))
    print(pages.disclaimer(found))
    print(page if picture is None else f"{page}, {picture}")


def tradeoff(
    app: AppArgument,
    epsilon: Epsilons = None,
    metric: Metric = None,
    rate: Annotated[float, typer.Option(help="A client's chance to be in a round, for noise by the server.")] = RATES[
        0
    ],
    clip: Annotated[
        float | None, typer.Option(help="Largest L2 norm of an update, instead of half the median.")
    ] = None,
    delta: Delta = DELTA,
    clients: Clients = None,
    rounds: Rounds = None,
    seed: Seed = 0,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Train the app plainly, and with noise by the server, by each client and for each record: one page."""
    loaded = load(app, rounds)
    population = loaded.clients(clients)
    folder = runs / f"tradeoff-{Path(app).stem}"
    found = run_tradeoff(
        loaded.federation,
        population,
        folder,
        delta=delta,
        epsilons=tuple(epsilon or EPSILONS),
        rate=rate,
        clip_norm=clip,
        metric=metric,
        seed=seed,
        tell=_tell_line,
    )
    page = pages.publish_tradeoff(folder, app, found, len(population), delta)
    if json:
        lines = [{**asdict(line), "guarantee": line.guarantee and str(line.guarantee)} for line in found.lines]
        print(encoded({"metric": found.metric, "lines": lines, "page": str(page)}))
        return
    _print("What protection costs", *pages.tradeoff_rows(found))
    for failure in pages.failures(found):
        print(failure)
    print(page)


def _drawn(folder: Path, found: Tuned) -> str | None:
    """Where the picture is; None, and a line that says why, where it cannot be drawn."""
    try:
        return str(pages.draw_tuned(folder, found))
    except Unavailable as missing:
        print(f"no picture: {missing}", file=sys.stderr)
        return None


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _tell_trial(trial: Trial, metric: str) -> None:
    if trial.epsilon is None:
        line = f"pilot without noise: the median norm of updates is {trial.clip_norm:g}"
    else:
        line = f"epsilon {trial.epsilon:g}, rate {trial.rate:g}, clip {trial.clip_norm:g}"
    value = trial.metrics.get(metric) if metric else None
    print(f"{line}: {trial.failure or (figures.value(value) if value is not None else 'done')}", file=sys.stderr)


def _tell_line(line: Line) -> None:
    asked = "" if line.asked is None else f", epsilon {line.asked:g}"
    print(f"noise by {line.protection}{asked}: {line.failure or figures.duration(line.seconds)}", file=sys.stderr)
