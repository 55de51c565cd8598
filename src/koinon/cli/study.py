"""Commands that need no network: new, simulate, explain."""

from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from koinon.cli.options import (
    RUNS,
    AppArgument,
    Json,
    MLflowOption,
    NetworkOption,
    Rounds,
    Runs,
    Seed,
    TensorBoardOption,
    encoded,
    load,
    loggers,
    show,
    tell,
)
from koinon.core.errors import AdmissionError
from koinon.core.network import Network
from koinon.data.devices import FLEETS, Clock, devices_named
from koinon.run.debugged import Debugged
from koinon.run.engine import InProcess, MakeEngine
from koinon.run.explain import explain as explanation_of
from koinon.run.policy import Policy
from koinon.run.ray import AppThere, OnRay
from koinon.run.simulate import simulate as run_simulation
from koinon.view.progress import PlainProgress


class Where(StrEnum):
    """Where simulated clients are trained."""

    LOCAL = "local"
    RAY = "ray"


def new(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder to make.")], json: Json = False) -> None:
    """Make a working app, ready to run."""
    if folder.exists() and any(folder.iterdir()):
        raise AdmissionError(f"{folder} is not empty; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    app = folder / "app.py"
    app.write_text(files("koinon.cli").joinpath("template.txt").read_text())
    tell(f"koinon simulate {app}", json, app=str(app))


def simulate(
    app: AppArgument,
    clients: Annotated[int | None, typer.Option(help="Clients, instead of the app's number.")] = None,
    rounds: Rounds = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes that train clients: 1 by default, on Ray as many as it has room for.")
    ] = None,
    engine: Annotated[Where, typer.Option(help="On this machine, or by actors of the Ray cluster at RAY_ADDRESS.")] = (
        Where.LOCAL
    ),
    num_cpus: Annotated[float, typer.Option(help="CPUs of each actor on Ray.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(help="GPUs of each actor on Ray.")] = 0.0,
    network: NetworkOption = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help=f"Clients' devices, for virtual time: {', '.join(FLEETS)}, or a CSV trace."
        ),
    ] = None,
    deadline: Annotated[float | None, typer.Option(help="Virtual seconds after which a round closes.")] = None,
    over_select: Annotated[float, typer.Option(help="Share of a cohort that need not answer.")] = 0.0,
    faithful: Annotated[bool, typer.Option("--faithful", help="Secure sums with all of their cryptography.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Stop in pdb where a client fails; in this process.")] = False,
    tensorboard: TensorBoardOption = None,
    mlflow: MLflowOption = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Run a federation on this machine, or on a Ray cluster. Equal seeds give equal bits."""
    loaded = load(app, rounds)
    population = loaded.clients(clients)
    between = None if network is None else Network.named(network)
    make: MakeEngine = InProcess
    if engine is Where.RAY:
        make = OnRay(workers, num_cpus, num_gpus, AppThere(app, loaded, population, rounds, clients))
    if debug:
        if engine is Where.RAY or (workers or 1) > 1:
            raise AdmissionError(
                "a debugger looks into this process only; leave --engine and --workers out with --debug"
            )
        make = Debugged()
    run = run_simulation(
        loaded.federation,
        population,
        seed,
        1 if engine is Where.RAY or workers is None else workers,
        engine=make,
        runs=runs,
        name=app,
        clients=clients,
        network=between,
        faithful=faithful,
        clock=_clock(devices, deadline, over_select),
        progress=PlainProgress() if debug else None,
        callbacks=loggers(tensorboard, mlflow),
    )
    show(run.summary(), json)


def _clock(devices: str | None, deadline: float | None, over_select: float) -> Clock | None:
    if devices is None:
        if deadline is not None or over_select:
            raise AdmissionError("without devices there is no time; give --devices beside --deadline or --over-select")
        return None
    return Clock(devices=devices_named(devices), deadline_s=deadline, over_selection=over_select)


def explain(
    app: AppArgument,
    rounds: Rounds = None,
    policy: Annotated[Path | None, typer.Option(help="A node's policy (TOML): what it says of the run.")] = None,
    json: Json = False,
) -> None:
    """Who can learn what; exit code 2 when the configuration is refused."""
    federation = load(app, rounds).federation
    explanation = explanation_of(federation, None if policy is None else Policy.load(policy))
    if json:
        print(encoded(explanation.summary()))
        return
    console = Console()
    learns = Table("who", "learns", title="Who can learn what", title_justify="left", show_lines=True)
    for who, what in explanation.learns:
        learns.add_row(who, what)
    console.print(learns)
    facts = Table(
        Column(), Column(overflow="fold"), title="Guarantees and costs", title_justify="left", show_header=False
    )
    for name, value in explanation.facts:
        facts.add_row(name, value)
    console.print(facts)
