"""Commands of data: what there is by name, what is in it, and how it would be divided."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from koinon.cli.options import Json, Seed, encoded, named, show
from koinon.data import IID, Dirichlet, EqualDirichlet, Natural, QuantitySkew, Samples, Shards, load
from koinon.data.heterogeneity import Heterogeneity
from koinon.data.sources import NAMED
from koinon.run.app import load_app
from koinon.view.picture import draw_partition

app = typer.Typer(help="Data sets by name, and what is in them.", no_args_is_help=True)


PARTITIONS: Mapping[str, Any] = {
    kind.__name__: kind for kind in (IID, Dirichlet, EqualDirichlet, Shards, QuantitySkew, Natural)
}


@app.command("list")
def list_data(json: Json = False) -> None:
    """The data sets that have a name."""
    if json:
        print(encoded(NAMED))
    for name in () if json else NAMED:
        print(name)


@app.command("show")
def show_data(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A name, a .csv or .parquet path, or hf:NAME.")],
    json: Json = False,
) -> None:
    """What is in a data set."""
    data = load(source)
    train = data.train
    summary: dict[str, object] = {"train": len(train), "test": len(data.test) if data.test is not None else 0}
    inputs, targets = train.batch(torch.arange(min(1, len(train))))
    summary |= {"inputs": list(inputs.shape[1:]), "targets": str(targets.dtype).removeprefix("torch.")}
    if isinstance(train, Samples) and train.groups is not None:
        summary["groups"] = {name: train.groups.count(name) for name in sorted(set(train.groups))}
    show(summary, json)


@app.command("partition")
def partition_data(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE|APP", help="A data set with --by, else an app's population.")
    ],
    by: Annotated[str | None, typer.Option(metavar="NAME[:NUMBER]", help=f"{', '.join(PARTITIONS)}.")] = None,
    clients: Annotated[int | None, typer.Option(help="How many clients.")] = None,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw who holds what: a .png, .svg or .pdf.")] = None,
    json: Json = False,
) -> None:
    """How unlike the clients of a partition are, in what they hold of each class and in how much."""
    if by is None:
        population = load_app(source).clients(clients)
    else:
        population = load(source).split(named(by, PARTITIONS, "partition", "Dirichlet:0.3"), clients, seed)
    found = Heterogeneity.of(population)
    if plot is not None:
        draw_partition(found, plot)
    show(found.summary(), json)
