"""Options that several commands have, and how a command prints its result."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import typer

from koinon import attack
from koinon.core.errors import AdmissionError
from koinon.core.network import NETWORKS
from koinon.run.app import App, load_app
from koinon.view.loggers import MLflow, TensorBoard
from koinon.view.progress import Progress

AppArgument: TypeAlias = Annotated[str, typer.Argument(metavar="APP", help="A Python file, or module:name.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Rounds: TypeAlias = Annotated[int | None, typer.Option(help="Rounds, instead of the app's.")]
Seed: TypeAlias = Annotated[int, typer.Option(help="Seed of everything that is not secret.")]
Runs: TypeAlias = Annotated[Path, typer.Option(help="Folder of the runs.")]
LogJson: TypeAlias = Annotated[bool, typer.Option("--log-json", help="Log one JSON object per line, no live view.")]

AttackOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--attack", metavar="NAME[:NUMBER]", help="Lie, to test the federation: SignFlip, Gaussian:5 …"),
]

NetworkOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--network", metavar="NAME|FILE", help=f"Between nodes and server: {', '.join(NETWORKS)}, or a TOML profile."
    ),
]

TensorBoardOption: TypeAlias = Annotated[
    Path | None, typer.Option("--tensorboard", metavar="FOLDER", help="Write curves for TensorBoard as well.")
]
MLflowOption: TypeAlias = Annotated[
    str | None, typer.Option("--mlflow", metavar="URI", help="Tell an MLflow tracking server as well.")
]

RUNS = Path("runs")


def loggers(tensorboard: Path | None, mlflow: str | None) -> list[Progress]:
    """What is told of a run beside the terminal."""
    told: list[Progress] = []
    told += [TensorBoard(tensorboard)] if tensorboard is not None else []
    return told + ([MLflow(mlflow)] if mlflow is not None else [])


def attack_named(text: str) -> attack.Attack:
    """`NAME`, an attack with its usual settings, or `NAME:NUMBER` with another first one.

    Raises:
        AdmissionError: if there is no such attack, or it needs more than a number.
    """
    kinds = {name: getattr(attack, name) for name in attack.__all__ if name != "Known"}
    made: attack.Attack = named(text, kinds, "attack", "SignFlip or SignFlip:10")
    return made


def named(text: str, kinds: Mapping[str, Callable[..., Any]], called: str, example: str) -> Any:
    """What `NAME` or `NAME:NUMBER` says, of these kinds; a number is the first setting.

    Args:
        kinds: What there is, by name.
        called: What they are, in messages.
        example: How one is written.

    Raises:
        AdmissionError: if there is no such kind, or it needs other settings.
    """
    name, _, number = text.partition(":")
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"write {example}"
        raise AdmissionError(f"there is no {called} {name}; {hint}")
    try:
        value = [] if not number else [int(number) if number.isdecimal() else float(number)]
        return kinds[name](*value)
    except (TypeError, ValueError) as error:
        raise AdmissionError(f"{text} is no {called} ({error}); write for instance {example}") from error


def load(reference: str, rounds: int | None = None) -> App:
    """The app, with another number of rounds if one was given."""
    return load_app(reference).lasting(rounds)


def show(summary: Mapping[str, object], as_json: bool) -> None:
    """Print a result: one JSON object on the last line, or a line for each entry."""
    if as_json:
        print(encoded(summary))
        return
    width = max(map(len, summary), default=0)
    for name, value in summary.items():
        print(f"{name:{width}}  {text(value)}")


def tell(line: str, as_json: bool, **result: object) -> None:
    """Print a result that fits a line: as one JSON object, or as that line."""
    print(encoded(result) if as_json else line)


def encoded(value: object) -> str:
    """JSON on one line; a metric without a value is null, since JSON has no NaN."""
    return msgspec.json.encode(value).decode()


def address(text: str) -> tuple[str, int]:
    """HOST:PORT.

    Raises:
        AdmissionError: if it is not of that form.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise AdmissionError(f"{text!r} is no address; write HOST:PORT, e.g. 0.0.0.0:8443")
    return host.strip("[]"), int(port)


def text(value: object) -> str:
    """A result for a person: numbers to four digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(item)}" for name, item in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
