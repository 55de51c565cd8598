"""Commands of what was spent of privacy."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from koinon.cli.network import HOME
from koinon.cli.options import RUNS, Json, Runs, encoded, show
from koinon.core.errors import Unavailable
from koinon.durable.ledger import Ledger
from koinon.durable.spending import Release, guarantees
from koinon.durable.store import Store
from koinon.federation import DELTA
from koinon.run.catalog import folder_of

app = typer.Typer(help="What was spent of privacy.", no_args_is_help=True)

NodeHome = Annotated[Path, typer.Option(help="The node's folder.")]
OfRun = Annotated[str | None, typer.Option("--run", metavar="ID", help="A server's or a simulation's run instead.")]


@app.command("show")
def show_ledger(
    home: NodeHome = HOME / "node",
    run: OfRun = None,
    delta: Annotated[float | None, typer.Option(help="At which epsilon is told.")] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """What this node's data has spent in all runs together, or what one run has spent; with unit and assumptions."""
    if run is None:
        ledger = _opened(home)
        charged = ledger.charges()
        ledger.close()
    else:
        store = Store(folder_of(runs, run))
        info, history = store.info(), store.history()
        store.close()
        charged = [(run, record.round, release) for record in history for release in record.releases]
        delta = delta or (info.delta if info is not None else None)
    total = guarantees((release for _, _, release in charged), delta or DELTA)
    if json:
        found = {place: {**asdict(guarantee), "says": str(guarantee)} for place, guarantee in total.items()}
        print(encoded({"rounds": _rounds(charged), "spent": found}))
        return
    for owner, rounds in _rounds(charged).items():
        print(f"{owner:44} {rounds} rounds")
    for place, guarantee in total.items():
        print(f"noise by the {place}: {guarantee}")
    if not total:
        print("nothing was released with noise; without noise, epsilon is unbounded")


@app.command()
def verify(home: NodeHome = HOME / "node", json: Json = False) -> None:
    """Check that nothing in this node's ledger was edited; exit code 7 if something was. For runs: `runs verify`."""
    ledger = _opened(home)
    show({"ledger": str(ledger.path), "entries": ledger.verify(), "verified": True}, json)


def _opened(home: Path) -> Ledger:
    if not (home / "ledger.db").exists():
        raise Unavailable(
            f"there is no ledger in {home}; a node has one once it joins a run with noise. Set --home or --run"
        )
    return Ledger(home)


def _rounds(charged: Iterable[tuple[str, int, Release]]) -> dict[str, int]:
    """Each run's last charged round."""
    found: dict[str, int] = {}
    for owner, round, _ in charged:
        found[owner] = max(round, found.get(owner, 0))
    return found
