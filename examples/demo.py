"""Four hospitals train one model, each with the records of its own patients; two processes are killed on the way.

The server learns sums of updates only, and adds noise to each, which protects every hospital from whoever has the model.
`make demo` runs this. Each hospital is an operating-system process of its own, `koinon join`, and so is the server,
`koinon serve`; they talk over TLS 1.3 on this machine. What is left is in `runs/<id>/`, with `report.html`.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich import box
from rich.console import Console
from rich.table import Table

from koinon import KoinonError, Population, Unavailable, VerificationFailed, simulate
from koinon.durable.secret import noise_of
from koinon.durable.store import Store
from koinon.run.app import App, load_app, new_run_id
from koinon.run.compare import compare, rivals, unprotected
from koinon.run.result import Run
from koinon.run.up import Trial
from koinon.view import report
from koinon.view.progress import Quiet
from koinon.view.report import Comparison

APP = os.path.relpath(Path(__file__).with_name("hospitals.py")) + ":private"
RUNS = Path("runs")
SEED = 0
VICTIM = "long-beach"

INTO_ROUND_S = 0.02
"""A round takes a few hundredths of a second: kills this long after the last one was closed fall into the next."""

AWAY_S = 1.0
LONGEST_S = 150.0

METRICS = {
    "accuracy": (
        "Accuracy",
        "The share of test patients whose diagnosis is right. One standard error is about 0.025 together, 0.1 in "
        "Switzerland.",
    ),
    "auroc": (
        "AUROC",
        "The chance that an ill patient is scored above a healthy one, from histograms of 1,024 bins, which add up "
        "across hospitals. Switzerland has a single healthy test patient, so its own column says little.",
    ),
}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def main() -> None:
    app = load_app(APP)
    hospitals = app.clients()
    tell_plan(app, hospitals)
    folder = RUNS / new_run_id(APP)
    everybody = [
        "--min-nodes",
        str(len(hospitals)),
        "--quorum",
        "1",
    ]  # so that both come to the same bits as if none had died
    terms = [*everybody, "--seed", str(SEED), "--linger", "60"]
    with Trial(APP, {name: name for name in hospitals.ids}, folder, terms) as trial:
        kills = federate(trial, app.federation.rounds)
    verification = koinon("runs", "verify", folder.name, "--runs", str(RUNS))
    with out.status("Training each hospital alone, all data pooled, and the same federation undisturbed …"):
        run = read(app, folder)
        tables = side_by_side(app, hospitals, run)
        report.write(run.path / "report.html", run.info, run.history, tables)
        check_bits(app, hospitals, run)
        if verification.wait():
            raise VerificationFailed(f"koinon runs verify {run.id} found the run's record damaged")
    show(hospitals, tables)
    for line in (
        kills,
        f"Secure sum: {run.info.secure}.",
        f"Differential privacy: {run.guarantees['server']}.",
        "`koinon runs verify`: the audit log is whole, and the history agrees with it.",
        f"Bit for bit the model of an undisturbed simulation with the same noise: {run.digest[:16]}…",
    ):
        out.print(f"[green]✓[/] {line}")
    out.print(f"\nReport: {run.path / 'report.html'}", soft_wrap=True)


def tell_plan(app: App, hospitals: Population) -> None:
    train, test = (sum(len(getattr(hospitals[name], part)) for name in hospitals.ids) for part in ("train", "test"))
    out.print(
        f"{len(hospitals)} hospitals with {train} patients to train on and {test} to test on: a process for each, and "
        f"one for the server, over TLS 1.3.\nThe server learns sums of updates and no update; noise in the sums protects each hospital as a whole.\nAfter a third of the {app.federation.rounds} rounds {VICTIM} is killed "
        "(SIGKILL), after two thirds the server; both come back.\nFirst PyTorch has to start in every process.\n"
    )


def federate(trial: Trial, rounds: int) -> str:
    """The run, from the first process to the last; tells who was killed when."""
    start_server(trial)
    for name in trial.nodes:
        trial.start_node(name)
    first = kill(trial, trial.process(VICTIM), rounds // 3)
    trial.start_node(VICTIM)
    second = kill(trial, trial.server, 2 * rounds // 3)
    err.show_cursor()  # which the live view has hidden, and the server could not show again
    err.print(f"\n\nThe server was killed in round {second}; above is its last picture. It is started again.\n")
    start_server(trial)
    wait(trial, rounds)
    if trial.wait():
        raise Unavailable("the server ended with an error, told above")
    return f"{VICTIM} was killed in round {first}, the server in round {second}; nothing was lost."


def kill(trial: Trial, process: subprocess.Popen[bytes], after: int) -> int:
    """Kill a process after so many rounds, and leave it dead for a moment; the round in which it died."""
    wait(trial, after)
    time.sleep(INTO_ROUND_S)
    process.kill()
    process.wait()
    round = trial.completed() + 1
    time.sleep(AWAY_S)
    return round


def wait(trial: Trial, rounds: int) -> None:
    """Wait until so many rounds are closed."""
    deadline = time.monotonic() + LONGEST_S
    while trial.completed() < rounds:
        trial.check()
        if trial.server.poll() is not None:
            raise Unavailable("the server ended early, for the reason told above")
        if time.monotonic() > deadline:
            raise Unavailable(f"round {rounds} was not closed within {LONGEST_S:g} s; see {trial.folder / 'logs'}")
        time.sleep(0.005)


def start_server(trial: Trial) -> None:
    trial.start_server(stdout=subprocess.DEVNULL)  # its result is told below


def read(app: App, folder: Path) -> Run:
    store = Store(folder)
    try:
        return Run.read(store, app.federation.learner.layout)
    finally:
        store.close()


def side_by_side(app: App, hospitals: Population, run: Run) -> list[Comparison]:
    with TemporaryDirectory() as folder:
        bare = simulate(unprotected(app.federation), hospitals, SEED, runs=folder, progress=Quiet())
    models = {"federated": run.vector, "without noise": bare.vector, **rivals(app.federation, hospitals, SEED)}
    tables = compare(app.federation.learner, models, hospitals)
    return [
        replace(table, title=METRICS[table.title][0], note=METRICS[table.title][1])
        for table in tables
        if table.title in METRICS
    ]


def check_bits(app: App, hospitals: Population, run: Run) -> None:
    with TemporaryDirectory() as folder:
        noise = noise_of(run.path)
        undisturbed = simulate(app.federation, hospitals, SEED, runs=folder, noise=noise, progress=Quiet())
    if undisturbed.digest != run.digest:
        raise VerificationFailed(f"the model is {run.digest}, that of an undisturbed simulation {undisturbed.digest}")


def show(hospitals: Population, tables: list[Comparison]) -> None:
    columns = tables[0].columns
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Held-out patients of each hospital, and all together")
    shown.caption = (
        "One standard error of an accuracy is about 0.025 on all, 0.1 in Switzerland. The noise hides each of four hospitals as "
        "a whole, and costs accordingly; the more take part, the less it costs."
    )
    shown.add_column(no_wrap=True)
    for name in columns:
        shown.add_column(name, justify="right")
    counts = [len(hospitals[name].test) for name in hospitals.ids]
    shown.add_row("patients", *map(str, (*counts, sum(counts))), style="dim", end_section=True)
    for table in tables:
        shown.add_row(f"[bold]{table.title}")
        for name, values in table.rows:
            cells = ("–" if value is None else f"{value:.3f}" for value in values)
            shown.add_row(name, *cells, style="green" if name == "federated" else "")
        shown.add_section()
    out.print(shown)


def koinon(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "koinon.cli", *arguments], stdout=subprocess.DEVNULL)


def fail(line: str, code: int) -> None:
    err.print(f"error: {line}", soft_wrap=True, markup=False)
    sys.exit(code)


if __name__ == "__main__":
    try:
        main()
    except KoinonError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("KOINON_DEBUG"):
            raise
        fail(f"unexpected {type(error).__name__}: {error}; KOINON_DEBUG=1 shows where", 1)
