"""The commands, and how they end: a result, or one clear line and an exit code that says whose fault it is."""

import os
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from koinon.cli import data, enroll, ledger, runs, tune
from koinon.cli.network import join, serve, up
from koinon.cli.study import explain, new, simulate
from koinon.core.errors import KoinonError

app = typer.Typer(
    name="koinon",
    help="Train one model over data that never leaves its owners.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(new)
app.command()(simulate)
app.command()(up)
app.command()(serve)
app.command()(join)
app.command()(explain)
app.command()(tune.tradeoff)
app.add_typer(tune.app, name="tune")
app.add_typer(enroll.app, name="enroll")
app.add_typer(runs.app, name="runs")
app.add_typer(ledger.app, name="ledger")
app.add_typer(data.app, name="data")

INTERRUPTED = 130
UNEXPECTED = 1


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(version("koinon"))
        raise typer.Exit


@app.callback()
def koinon(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train one model over data that never leaves its owners."""


def main() -> None:
    """Run a command; every error is one line on standard error, and its exit code is in docs/reference/errors.md."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except KoinonError as error:
        _end(str(error), error.exit_code)
    except typer.TyperException as error:
        words = error.format_message().rstrip(".")
        if words:
            _end(f"{words}; --help shows what there is", error.exit_code)
        code = error.exit_code  # without a command typer has shown the help
    except KeyboardInterrupt:
        _end("interrupted; nothing is lost, `koinon runs list` shows how far it came", INTERRUPTED)
    except Exception as error:
        if os.environ.get("KOINON_DEBUG"):
            raise
        _end(f"unexpected {type(error).__name__}: {error}; KOINON_DEBUG=1 shows where. Please report it", UNEXPECTED)
    sys.exit(code)


def _end(line: str, code: int) -> NoReturn:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)
