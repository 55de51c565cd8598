"""Real servers and nodes, as processes or in one loop, and what the same run comes to when nothing happens to it."""

import asyncio
import hashlib
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import koinon as kn
from koinon.cli.options import load
from koinon.durable.roster import Roster
from koinon.durable.store import Store
from koinon.protocol.messages import Goodbye, Welcome
from koinon.run import serve
from koinon.run.app import load_app
from koinon.run.catalog import network_run
from koinon.run.coordinator import Coordinator
from koinon.run.engine import InProcess
from koinon.run.join import Address, Node
from koinon.run.policy import Policy
from koinon.run.settings import Settings
from koinon.run.up import Trial
from koinon.wire.certificates import Authority, certificate_digest, client_context, make_authority, server_context
from koinon.wire.connect import connect
from koinon.wire.connection import Connection
from koinon.wire.identity import Identity
from koinon.wire.listen import application, listening

APPS = Path(__file__).parent / "apps"
PATIENCE_S = 240.0
"""Longest that any run here may take; the machine may be busy."""


@dataclass(frozen=True)
class Undisturbed:
    """What a run comes to.

    Attributes:
        digests: Of the model after each round.
        updates: (round, client) -> digest of the update.
    """

    digests: list[str]
    updates: Mapping[tuple[int, str], str]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Callable[..., Undisturbed]:
    """(app, clients, rounds) -> what the app's rounds, or so many, come to with seed 0."""

    @cache
    def of(app: str, clients: int, rounds: int | None = None) -> Undisturbed:
        loaded, updates = load(app, rounds), {}

        class Witness(InProcess):
            def train(self, round, cohort, *arguments):
                for client, local in super().train(round, cohort, *arguments):
                    updates[round, client] = hashlib.sha256(local.encoded).hexdigest()
                    yield client, local

        folder = tmp_path_factory.mktemp("undisturbed")
        run = kn.simulate(loaded.federation, loaded.clients(clients), runs=folder, engine=Witness)
        return Undisturbed([record.digest for record in run.history], updates)

    return of


@pytest.fixture
def app() -> Callable[[str], str]:
    """Name -> path of one of the apps here."""
    return lambda name: str(APPS / f"{name}.py")


class Drill:
    """A trial whose processes die where they are told to, and are started again until the run is over.

    Args:
        trial: The processes.
        deaths: Who -> the moments at which that process and then its successors die; the server is "server".
    """

    def __init__(self, trial: Trial, deaths: Mapping[str, Sequence[str]]) -> None:
        self.trial = trial
        self.died: list[tuple[str, str]] = []
        self._deaths = {who: list(deaths.get(who, ())) for who in ("server", *trial.nodes)}
        self._due: dict[str, tuple[str, Path]] = {}

    def run(self) -> None:
        """Run to the end; every process has died as it was told, and then ended well."""
        for who in self._deaths:
            self._start(who)
        deadline = time.monotonic() + PATIENCE_S
        while going_on := [who for who in self._deaths if self._goes_on(who)]:
            assert time.monotonic() < deadline, f"{going_on} hang:\n{self.words('server')}"
            time.sleep(0.1)
        assert not any(self._deaths.values()), f"nobody came to {self._deaths}"

    def words(self, who: str) -> str:
        """What a process has said."""
        return self.trial.log(who).read_text()

    def _start(self, who: str) -> None:
        environment = {}
        if self._deaths[who]:
            marker = self.trial.folder / f"{who}-{len(self.died)}.died"
            self._due[who] = self._deaths[who].pop(0), marker
            environment["KOINON_KILL_AT"] = f"{self._due[who][0]}:{marker}"
        if who == "server":
            with self.trial.log(who).open("ab") as log:
                self.trial.start_server(environment, log.fileno(), log.fileno())
        else:
            self.trial.start_node(who, environment)

    def _goes_on(self, who: str) -> bool:
        process = self.trial.server if who == "server" else self.trial.process(who)
        code = process.poll()
        if code == -signal.SIGKILL:
            moment, marker = self._due.pop(who)
            assert marker.exists()
            self.died.append((who, moment))
            self._start(who)
        else:
            assert code in (None, 0), f"{who} ended with {code}:\n{self.words(who)}"
            assert code is None or who not in self._due, f"{who} never came to {self._due[who][0]}"
        return code != 0


@pytest.fixture
def survived(tmp_path) -> Callable[..., Drill]:
    """Run an app with two nodes through some deaths."""

    def through(app: str, deaths: Mapping[str, Sequence[str]], clients: int = 2) -> Drill:
        nodes = {str(client): f"population:{client}/{clients}" for client in range(clients)}
        with Trial(app, nodes, tmp_path / "runs" / "drill", ["--min-nodes", str(clients), "--json"]) as trial:
            drill = Drill(trial, deaths)
            drill.run()
        return drill

    return through


@pytest.fixture
def drill(survived, undisturbed) -> Callable[..., Drill]:
    """The same, and compare everything durable with the undisturbed run."""

    def through(app: str, deaths: Mapping[str, Sequence[str]], clients: int = 2) -> Drill:
        drill = survived(app, deaths, clients)
        agrees(drill.trial, undisturbed(app, clients))
        return drill

    return through


def agrees(trial: Trial, expected: Undisturbed) -> None:
    """Nothing was lost, nothing counted twice, nothing drawn twice; everyone holds the same bits."""
    store = Store(trial.folder)
    store.verify()
    history = store.history()
    assert [record.digest for record in history] == expected.digests
    for record in history:
        assert [(part.client, part.outcome) for part in record.participants] == [
            (client, "accepted") for client in trial.nodes
        ]
        settled = store.settled(record.round)
        assert {part.node: part.offer.update.digest for part in settled} == {
            client: expected.updates[record.round, client] for client in trial.nodes
        }
    assert store.nodes() == dict.fromkeys(trial.nodes, True)
    assert not list(trial.folder.rglob("*.tmp"))
    store.close()
    model = (trial.folder / "model.safetensors").read_bytes()
    for client in trial.nodes:
        assert (trial.folder / "nodes" / client / trial.folder.name / "model.safetensors").read_bytes() == model


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


class Room:
    """A real server in this loop, behind real TLS, to which anybody can connect.

    Attributes:
        faults: What ended up with the loop because nobody caught it.
    """

    def __init__(self, folder: Path, authority: Authority, app: str, settings: Settings, linger_s: float) -> None:
        self.folder = folder
        self.app = load_app(app)
        self.roster = Roster(folder / "roster.db")
        self.store, info = network_run(folder / "runs", self.app, self.app.federation, 0, "run")
        self.server = serve.Server(
            Coordinator(self.app.federation, info, self.store, settings, time.monotonic), self.roster, linger_s
        )
        self.faults: list[dict[str, Any]] = []
        self._authority = authority
        self._identity = Identity.generate()
        self._path = app

    async def __aenter__(self) -> "Room":
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.faults.append(context))
        certificate, key = self._authority.certificate, self._authority.key
        asgi = application(
            self.server.handle,
            identity=self._identity,
            run="run",
            certificate=certificate_digest(certificate),
            metrics=self.server.metrics,
            health=self.server.health,
        )
        self._listening = listening(asgi, "127.0.0.1", 0, server_context(certificate, key))
        self.port = await self._listening.__aenter__()
        self._running = asyncio.create_task(self.server.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.server.stop()
        await self._running
        await self._listening.__aexit__(*error)
        self.roster.close()
        self.store.close()

    async def end(self) -> list[str]:
        """Wait for the run to end; the models after its rounds."""
        async with asyncio.timeout(PATIENCE_S):
            await self._running
        assert not self.faults
        self.store.verify()
        return [record.digest for record in self.store.history()]

    def enrol(self, name: str) -> Identity:
        """A new identity that may join."""
        identity = Identity.generate()
        self.roster.approve(identity.key, name)
        return identity

    async def connect(
        self, identity: Identity, definition: str | None = None, token: str = ""
    ) -> tuple[Connection, Welcome | Goodbye]:
        """Come in as anybody."""
        return await connect(
            f"wss://127.0.0.1:{self.port}",
            identity,
            pinned=self._identity.key,
            context=client_context(self._authority.authority),
            definition=definition or self.app.federation.digest,
            token=token,
        )

    def node(
        self, identity: Identity, client: str, clients: int = 3, policy: Policy | None = None, token: str = ""
    ) -> Node:
        """An honest node, with the data of a client and an app of its own."""
        app = load_app(self._path)
        address = Address(f"wss://127.0.0.1:{self.port}", self._identity.key, client_context(self._authority.authority))
        home = self.folder / "nodes" / identity.key.hex()
        return Node(app.federation, address, identity, app.clients(clients)[client], home, policy or Policy(), token)


@pytest.fixture
def room(tmp_path, authority, app, monkeypatch) -> Callable[..., Room]:
    """Make a room; its clock ticks ten times a second."""
    monkeypatch.setattr(serve, "TICK_S", 0.1)

    def make(name: str = "small", linger_s: float = 60.0, **settings: Any) -> Room:
        return Room(tmp_path, authority, app(name), Settings(**settings), linger_s)

    return make


@pytest.fixture
def play(caplog) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a scene to its end; whatever happened in it, nobody may have logged a traceback."""

    def run(scene: Coroutine[Any, Any, None]) -> None:
        asyncio.run(scene)
        assert not [record.getMessage() for record in caplog.records if record.exc_info]

    return run
