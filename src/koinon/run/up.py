"""A server and its nodes as real processes on this machine, over TLS."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from koinon.core.errors import Unavailable
from koinon.core.network import Network
from koinon.core.types import ClientId
from koinon.durable.roster import Roster
from koinon.durable.store import Store
from koinon.run.host import Home
from koinon.run.shaping import Relay
from koinon.wire.certificates import make_authority
from koinon.wire.identity import key_text

FAREWELL_S = 30.0
"""Seconds that nodes have to end by themselves after the server."""


class Trial:
    """The processes of one run on this machine; leaving the context ends those that are left.

    Args:
        app: The app, as a person writes it.
        nodes: Names of the nodes, and for each the source of its data.
        folder: The run's folder; its name is the run's id.
        serve: More arguments for `koinon serve`.
        lying: Nodes that lie, and by which attack of `koinon.attack`.
        network: What is between each node and the server; None: nothing that this machine has not.
    """

    def __init__(
        self,
        app: str,
        nodes: Mapping[ClientId, str],
        folder: Path,
        serve: Sequence[str] = (),
        lying: Mapping[ClientId, str] | None = None,
        network: Network | None = None,
    ) -> None:
        self._lying = lying or {}
        self.app = app
        self.nodes = dict(nodes)
        self.folder = folder
        self._arguments = list(serve)
        self._home = Home(folder / "server")
        self._port = _free_port()
        self._relay = Relay(network, self._port, self.nodes) if network is not None else None
        self._processes: dict[ClientId, subprocess.Popen[bytes]] = {}
        self.server: subprocess.Popen[bytes] | None = None
        self._store: Store | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._key = key_text(self._home.own_identity().key)
        self._authority = make_authority(self._home.authority).authority
        self._enrol()

    def __enter__(self) -> "Trial":
        if self._relay is not None:
            self._relay.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is not None:
            self._store.close()
        for process in [self.server, *self._processes.values()]:
            if process is not None and process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(FAREWELL_S / 3)
                process.kill()
                process.wait()
        if self._relay is not None:
            self._relay.__exit__(kind, error, traceback)

    def start_server(
        self, environment: Mapping[str, str] | None = None, stdout: int | None = None, stderr: int | None = None
    ) -> None:
        """Start the server, or start it again; its output goes where this process's goes, unless told otherwise."""
        arguments = [
            "serve",
            self.app,
            "--listen",
            f"127.0.0.1:{self._port}",
            "--dev",
            "--home",
            str(self._home.folder),
        ]
        arguments += ["--runs", str(self.folder.parent), "--run", self.folder.name]
        self.server = _koinon([*arguments, *self._arguments], environment, stdout, stderr)

    def start_node(self, name: ClientId, environment: Mapping[str, str] | None = None) -> None:
        """Start a node, or start it again; its log is in `logs/`."""
        home = self._node_home(name).folder
        port = self._port if self._relay is None else self._relay.port(name)
        arguments = ["join", f"wss://localhost:{port}", self.app, "--data", self.nodes[name]]
        arguments += ["--server", self._key, "--ca", str(self._authority), "--home", str(home)]
        if name in self._lying:
            arguments += ["--dev", "--attack", self._lying[name]]
        with self.log(name).open("ab") as log:
            self._processes[name] = _koinon(arguments, environment, stdout=log.fileno(), stderr=log.fileno())

    def log(self, name: ClientId) -> Path:
        """Where a node's log is."""
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        return path

    def process(self, name: ClientId) -> subprocess.Popen[bytes]:
        """A node's process."""
        return self._processes[name]

    def completed(self) -> int:
        """Rounds closed so far, from the run's store: it answers while the server is dead, too."""
        if self._store is None and (self.folder / "checkpoints" / "round-000000.safetensors").exists():
            self._store = Store(self.folder)
        return 0 if self._store is None else self._store.completed()

    def wait(self) -> int:
        """Wait for the server to end, then for the nodes; the server's exit code.

        Raises:
            Unavailable: if a node ended early with an error; its last words are in the message.
        """
        assert self.server is not None
        while self.server.poll() is None:
            self.check()
            time.sleep(0.2)
        deadline = time.monotonic() + FAREWELL_S
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        return self.server.returncode

    def check(self) -> None:
        """Nothing, as long as no node has ended with an error; one that was killed has not.

        Raises:
            Unavailable: if one has; its last words are in the message.
        """
        for name, process in self._processes.items():
            if process.poll() not in (None, 0, -signal.SIGKILL):
                words = self.log(name).read_text(errors="replace").strip().splitlines()
                last = words[-1].removeprefix("error: ") if words else "without a word"
                raise Unavailable(f"node {name} ended early: {last}")

    def interrupt(self) -> None:
        """Ask the server to stop; the run can be gone on with."""
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait()

    def _node_home(self, name: ClientId) -> Home:
        return Home(self.folder / "nodes" / name)

    def _enrol(self) -> None:
        roster = Roster(self._home.roster)
        for name in self.nodes:
            roster.approve(self._node_home(name).own_identity().key, name)
        roster.close()


def _koinon(
    arguments: Sequence[str], environment: Mapping[str, str] | None, stdout: int | None, stderr: int | None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "koinon.cli", *arguments]
    variables = {**os.environ, **(environment or {})}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=variables)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
