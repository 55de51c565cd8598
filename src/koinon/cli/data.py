"""Commands of data: what there is by name, and what is in it."""

from typing import Annotated

import torch
import typer

from koinon.cli.options import Json, encoded, show
from koinon.data import Samples, load
from koinon.data.sources import NAMED

app = typer.Typer(help="Data sets by name, and what is in them.", no_args_is_help=True)


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
