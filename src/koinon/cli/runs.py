"""Commands of runs: what was done, going on with it, checking it."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from koinon.cli.options import RUNS, Json, Runs, encoded, load, show, text
from koinon.core.errors import AdmissionError, VerificationFailed
from koinon.durable import checkpoint
from koinon.durable.store import Store
from koinon.run.catalog import all_runs, folder_of
from koinon.run.contest import AXES, By, Contestant, metric_of
from koinon.run.result import Run
from koinon.run.simulate import simulate
from koinon.view.picture import draw_curves

app = typer.Typer(help="What was run, going on with it, checking it.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="A run; `koinon runs list` shows them.")]


@app.command("list")
def list_runs(runs: Runs = RUNS, json: Json = False) -> None:
    """All runs, the newest first."""
    found = all_runs(runs)
    if json:
        print(encoded(found))
    for info in () if json else found:
        print(f"{info.id:44} {info.status:9} {info.runtime:10} {info.rounds:4} rounds  {info.app}")


@app.command("show")
def show_run(id: Id, runs: Runs = RUNS, json: Json = False) -> None:
    """One run, round by round."""
    store = Store(folder_of(runs, id))
    info, history = store.info(), store.history()
    if json:
        print(encoded({"info": info, "history": history}))
        return
    show(msgspec.to_builtins(info), False)
    for record in history:
        accepted = sum(part.outcome == "accepted" for part in record.participants)
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in record.metrics.items())
        print(f"round {record.round:4}  {accepted} of {len(record.participants)} accepted  {metrics}")


@app.command()
def compare(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Runs; `koinon runs list` shows them.")],
    metric: Annotated[
        str | None, typer.Option(help="What is compared; by default the first score that all have.")
    ] = None,
    by: Annotated[By, typer.Option(help="What the plot has it by.")] = "rounds",
    plot: Annotated[Path | None, typer.Option(help="Draw the courses: a .png, .svg or .pdf.")] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Runs side by side: what each came to, and what it cost."""
    contestants = [_contestant(runs, id) for id in ids]
    wanted = metric_of(contestants, metric)
    rows = [each.row(wanted) for each in contestants]
    if plot is not None:
        curves = {each.info.id: each.points(wanted, by) for each in contestants}
        draw_curves(curves, plot, AXES[by], wanted)
    if json:
        print(encoded(rows))
        return
    table = Table(*(Column(overflow="fold") for _ in range(len(rows) + 1)), show_header=False)
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(text(row.get(name, "")) for row in rows))
    Console().print(table)


def _contestant(runs: Path, id: str) -> Contestant:
    store = Store(folder_of(runs, id))
    try:
        info = store.info()
        if info is None:
            raise AdmissionError(f"nothing has begun in {store.folder}; `koinon runs list` shows runs")
        return Contestant(info, store.history())
    finally:
        store.close()


@app.command()
def resume(
    id: Id,
    app: Annotated[str | None, typer.Option(metavar="APP", help="The app, if it has moved.")] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Go on with a simulation that was cut short. A server goes on by itself when it is started again."""
    store = Store(folder_of(runs, id))
    info = store.info()
    store.close()
    if info is None or info.runtime != "simulation":
        raise AdmissionError(f"{id} is no simulation; go on with it by `koinon serve APP --run {id}`")
    loaded = load(app or info.app, info.rounds)
    population = loaded.clients(info.clients)
    run = simulate(loaded.federation, population, info.seed, runs=runs, name=info.app, clients=info.clients, resume=id)
    show(run.summary(), json)


@app.command()
def verify(id: Id, runs: Runs = RUNS, json: Json = False) -> None:
    """Check that nothing in a run's record was edited; exit code 7 if something was."""
    store = Store(folder_of(runs, id))
    entries = store.verify()
    history = store.history()
    if history:
        model = checkpoint.load(store.checkpoint(len(history))).model
        if checkpoint.digest(model) != history[-1].digest:
            raise VerificationFailed(f"the checkpoint of round {len(history)} is not the model in the history")
    show({"id": id, "entries": entries, "rounds": len(history), "verified": True}, json)


@app.command()
def export(
    id: Id,
    app: Annotated[str | None, typer.Option(metavar="APP", help="The app, if it has moved.")] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Write a run's report and its model as named tensors; prints where."""
    store = Store(folder_of(runs, id))
    info = store.info()
    assert info is not None
    run = Run.read(store, load(app or info.app).federation.learner.layout).publish()
    show({name: str(run.path / name) for name in ("report.html", "model.safetensors")}, json)
