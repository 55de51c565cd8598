"""Options that several commands have, and how a command prints its result."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
import typer

from koinon import attack
from koinon.core.errors import AdmissionError
from koinon.core.network import NETWORKS
from koinon.run.app import App, load_app

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

RUNS = Path("runs")


def attack_named(text: str) -> attack.Attack:
    """`NAME`, an attack with its usual settings, or `NAME:NUMBER` with another first one.

    Raises:
        AdmissionError: if there is no such attack, or it needs more than a number.
    """
    name, _, number = text.partition(":")
    kind = getattr(attack, name, None) if name in attack.__all__ and name != "Known" else None
    if kind is None:
        near = difflib.get_close_matches(name, attack.__all__, n=1)
        raise AdmissionError(f"there is no attack {name}; {f'did you mean {near[0]}?' if near else 'SignFlip is one'}")
    try:
        made: attack.Attack = kind(float(number)) if number else kind()
    except (TypeError, ValueError) as error:
        raise AdmissionError(f"{text} is no attack ({error}); write for instance SignFlip or SignFlip:10") from error
    return made


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
        print(f"{name:{width}}  {_text(value)}")


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


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
