"""Commands of the network: up, serve, join."""

from pathlib import Path
from socket import gethostname
from typing import Annotated

import typer

from koinon.cli.options import (
    RUNS,
    AppArgument,
    AttackOption,
    Json,
    LogJson,
    MLflowOption,
    NetworkOption,
    Rounds,
    Runs,
    Seed,
    TensorBoardOption,
    address,
    attack_named,
    load,
    loggers,
    show,
)
from koinon.core.errors import AdmissionError
from koinon.core.network import Network
from koinon.run import host as processes
from koinon.run.app import new_run_id
from koinon.run.host import Home, Listen
from koinon.run.policy import Policy
from koinon.run.settings import Settings
from koinon.run.up import Trial
from koinon.view.log import configure, log
from koinon.view.progress import LoggedProgress, progress_for
from koinon.view.together import Together
from koinon.wire.certificates import LOOPBACK

HOME = Path(".koinon")
"""Where a server or a node keeps its identity, roster and journal."""

HomeOption = Annotated[Path, typer.Option(help="Folder with the identity and what goes with it.")]


def serve(
    app: AppArgument,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address to listen on.")],
    cert: Annotated[Path | None, typer.Option(help="TLS certificate chain (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    dev: Annotated[bool, typer.Option("--dev", help="Make a private certificate authority instead.")] = False,
    host: Annotated[
        list[str] | None, typer.Option(help="Name by which nodes reach this server; for --dev, may be repeated.")
    ] = None,
    rounds: Rounds = None,
    seed: Seed = 0,
    min_nodes: Annotated[int, typer.Option(help="Nodes that must be here for a round to open.")] = 2,
    quorum: Annotated[float, typer.Option(help="Share of the cohort without which no round closes.")] = 0.5,
    over_select: Annotated[float, typer.Option(help="Share of the cohort that need not answer.")] = 0.0,
    deadline: Annotated[float, typer.Option(help="Seconds that a cohort has to answer.")] = 600.0,
    linger: Annotated[float, typer.Option(help="Seconds to wait at the end for nodes that are away.")] = 600.0,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Run to go on with, or a new one's id.")] = None,
    tensorboard: TensorBoardOption = None,
    mlflow: MLflowOption = None,
    home: HomeOption = HOME / "server",
    runs: Runs = RUNS,
    json: Json = False,
    log_json: LogJson = False,
) -> None:
    """Serve a federation; goes on by itself with a run that is not over."""
    configure(log_json)
    bound, port = address(listen)
    if (cert is None or key is None) and not dev:
        raise AdmissionError("a server needs --cert and --key, or --dev to make a private certificate authority")
    loaded = load(app, rounds)
    everywhere = bound in ("0.0.0.0", "::")
    named = host or ([gethostname()] if everywhere else [] if bound in LOOPBACK else [bound])
    progress = Together(LoggedProgress() if log_json else progress_for(), loggers(tensorboard, mlflow))
    result = processes.serve(
        loaded,
        Listen(bound, port, Home(home), cert, key, (*named, *LOOPBACK)),
        runs,
        Settings(min_nodes, over_select, quorum, deadline),
        progress,
        lambda how: log("nodes join by: koinon join {how} --data SOURCE", how=how),
        seed=seed,
        run=run,
        linger_s=linger,
    )
    show(result.summary(), json)


def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="wss://HOST:PORT")],
    app: AppArgument,
    data: Annotated[str, typer.Option(metavar="SOURCE", help="This node's data, given to the app's `data`.")],
    server: Annotated[str, typer.Option(metavar="KEY", help="The server's identity, ed25519:...; pinned.")],
    ca: Annotated[Path | None, typer.Option(help="Certificate authority of the server (PEM).")] = None,
    token: Annotated[str, typer.Option(help="One-time token, instead of an approval.")] = "",
    policy: Annotated[Path | None, typer.Option(help="What the data's owner allows (TOML).")] = None,
    attack: AttackOption = None,
    dev: Annotated[bool, typer.Option("--dev", help="On a network for trials, where a node may lie.")] = False,
    home: HomeOption = HOME / "node",
    json: Json = False,
    log_json: LogJson = False,
) -> None:
    """Take part in a federation with one's own data, until the final model is here."""
    configure(log_json)
    allowed = Policy() if policy is None else Policy.load(policy)
    if attack is not None and not dev:
        raise AdmissionError("a node that lies belongs on a network for trials only; give --dev with --attack")
    lie = None if attack is None else attack_named(attack)
    model = processes.join(
        load(app), url, server, data, Home(home), authority=ca, policy=allowed, token=token, attack=lie
    )
    show({"model": str(model)}, json)


def up(
    app: AppArgument,
    nodes: Annotated[int, typer.Option(help="Node processes.")],
    attack: AttackOption = None,
    liars: Annotated[int, typer.Option(help="How many of the nodes, the last ones, do so.")] = 1,
    network: NetworkOption = None,
    rounds: Rounds = None,
    seed: Seed = 0,
    tensorboard: TensorBoardOption = None,
    mlflow: MLflowOption = None,
    runs: Runs = RUNS,
    json: Json = False,
    log_json: LogJson = False,
) -> None:
    """Run a server and nodes as real processes on this machine, over TLS, with the app's population as their data."""
    loaded = load(app, rounds)
    population = loaded.clients(nodes)
    if len(population) < nodes:
        raise AdmissionError(f"{app} has {len(population)} clients; ask for at most that many --nodes")
    names = {str(name): f"population:{place}/{nodes}" for place, name in enumerate(population.ids)}
    arguments = ["--min-nodes", str(nodes), "--seed", str(seed)]
    arguments += ["--rounds", str(rounds)] if rounds is not None else []
    arguments += ["--json"] * json + ["--log-json"] * log_json
    arguments += ["--tensorboard", str(tensorboard)] if tensorboard is not None else []
    arguments += ["--mlflow", mlflow] if mlflow is not None else []
    if attack is not None:
        attack_named(attack)
        if not 0 < liars < nodes:
            raise AdmissionError(f"of {nodes} nodes {liars} cannot lie; give --liars from 1 to {nodes - 1}")
    lying = dict.fromkeys(list(names)[nodes - liars :], attack) if attack is not None else {}
    between = None if network is None else Network.named(network)
    with Trial(app, names, runs / new_run_id(app), arguments, lying, between) as trial:
        trial.start_server()
        for name in names:
            trial.start_node(name)
        try:
            code = trial.wait()
        except KeyboardInterrupt:
            trial.interrupt()
            raise
    raise typer.Exit(code)
