"""What the benchmarks of real processes share: a server, its address, and what the system says of a process."""

import contextlib
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from koinon.run.up import Trial

APPS = Path(__file__).parent / "apps"
START_S = 120.0
"""Seconds that processes have to start; ten of them import torch on two cores."""

_JOIN = re.compile(r"koinon join (\S+) .* --server (\S+) --ca (\S+)")


@dataclass(frozen=True)
class Address:
    """How nodes reach a server, as it tells them: its URL, its identity key and its certificate authority."""

    url: str
    key: str
    authority: Path


@contextlib.contextmanager
def trial(
    app: str, nodes: Mapping[str, str], folder: Path, arguments: Sequence[str]
) -> Iterator[tuple[Trial, Address]]:
    """A server process that listens; its nodes are enrolled and not started.

    Args:
        app: A file of `apps/`.
        nodes: Name -> source of its data.
        folder: Of the run; not there yet.
        arguments: More of `koinon serve`.
    """
    with Trial(str(APPS / app), nodes, folder, arguments) as made:
        log = folder / "server.log"
        with log.open("wb") as file:
            made.start_server(stdout=subprocess.DEVNULL, stderr=file.fileno())
        until(made, lambda: _JOIN.search(log.read_text()) is not None)
        found = _JOIN.search(log.read_text())
        assert found is not None
        yield made, Address(found[1], found[2], Path(found[3]))


def until(trial: Trial, condition: Callable[[], bool], seconds: float = START_S) -> None:
    """Wait for something that the processes do."""
    deadline = time.monotonic() + seconds
    while not condition():
        trial.check()
        if trial.server is None or trial.server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"the server ended or was too slow:\n{(trial.folder / 'server.log').read_text()[-2000:]}"
            )
        time.sleep(0.05)


def closings(folder: Path) -> list[float]:
    """When each round of a run was closed, in seconds, from its audit log."""
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'run.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT time FROM audit WHERE event = 'RoundClosed' ORDER BY number").fetchall()
    return [datetime.fromisoformat(time).timestamp() for (time,) in rows]


def memory(pid: int, field: str = "VmRSS") -> float:
    """A process's resident memory now (`VmRSS`) or at its greatest (`VmHWM`), in MiB."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
