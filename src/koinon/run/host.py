"""A server's or a node's whole process life: from files and settings to a result."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from koinon.attack.attack import Attack
from koinon.core.errors import AdmissionError
from koinon.durable.roster import Roster
from koinon.run.app import App
from koinon.run.catalog import claim, network_run
from koinon.run.coordinator import Coordinator
from koinon.run.join import Address, Node
from koinon.run.policy import Policy
from koinon.run.result import Run
from koinon.run.serve import Server
from koinon.run.settings import Settings
from koinon.view.progress import Progress
from koinon.wire.certificates import LOOPBACK, certificate_digest, client_context, make_authority, server_context
from koinon.wire.identity import Identity, key_text, parse_key
from koinon.wire.listen import application, listening

STOPPED = 128 + signal.SIGTERM
"""Exit code of a node that was told to stop, by SIGTERM or SIGINT, and has left."""


@dataclass(frozen=True)
class Home:
    """A folder with what a server or a node must keep: its identity, and what goes with it."""

    folder: Path

    @property
    def identity(self) -> Path:
        """The private key."""
        return self.folder / "identity.pem"

    @property
    def roster(self) -> Path:
        """A server's roster."""
        return self.folder / "roster.db"

    @property
    def authority(self) -> Path:
        """A server's private certificate authority."""
        return self.folder / "tls"

    def own_identity(self) -> Identity:
        """The identity; made when there is none."""
        if self.identity.exists():
            return Identity.load(self.identity)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        identity = Identity.generate()
        identity.save(self.identity)
        return identity


@dataclass(frozen=True)
class Listen:
    """Where and as whom a server listens.

    Attributes:
        host: Address to bind.
        port: Port to bind, 0 for any.
        home: The server's folder.
        certificate: TLS certificate chain (PEM), None for a private authority.
        key: Its private key (PEM).
        hosts: Names for which the private authority vouches.
    """

    host: str
    port: int
    home: Home
    certificate: Path | None = None
    key: Path | None = None
    hosts: tuple[str, ...] = LOOPBACK


def serve(
    app: App,
    listen: Listen,
    runs: Path,
    settings: Settings,
    progress: Progress,
    tell: Callable[[str], None],
    *,
    seed: int = 0,
    run: str | None = None,
    linger_s: float = 600.0,
) -> Run:
    """Serve a run until it is over; go on with one that is not.

    Args:
        app: What to run.
        listen: Where.
        runs: Folder of the runs' folders.
        settings: How to wait for nodes.
        progress: Told what happens.
        tell: Told, once, how a node joins.
        seed: Of a new run.
        run: Id of a run to go on with, or of a new one; None for the newest that is not over.
        linger_s: Seconds to wait at the end for nodes that have not fetched the final model.

    Raises:
        KoinonError: if the port, the store or the certificate cannot be had, or the run does not fit the app.
    """
    store, info = network_run(runs, app, app.federation, seed, run)
    claim(store)
    identity = listen.home.own_identity()
    roster = Roster(listen.home.roster)
    if listen.certificate is None or listen.key is None:
        authority = make_authority(listen.home.authority, listen.hosts)
        certificate, key, trusted = authority.certificate, authority.key, f" --ca {authority.authority}"
    else:
        certificate, key, trusted = listen.certificate, listen.key, ""

    async def main() -> None:
        with progress.following(info):
            aside = partial(asyncio.get_running_loop().run_in_executor, None)
            coordinator = Coordinator(
                app.federation, info, store, settings, time.monotonic, progress, aside, roster.keys
            )
            server = Server(coordinator, roster, linger_s)
            asgi = application(
                server.handle,
                identity=identity,
                run=info.id,
                certificate=certificate_digest(certificate),
                metrics=server.metrics,
                health=server.health,
            )
            async with listening(asgi, listen.host, listen.port, server_context(certificate, key)) as port:
                tell(f"wss://{listen.hosts[0]}:{port} {app.name} --server {key_text(identity.key)}{trusted}")
                await server.run()

    try:
        asyncio.run(main())
        result = Run.read(store, app.federation.learner.layout)
        return result.publish() if result.history else result
    finally:
        roster.close()
        store.close()


def join(
    app: App,
    url: str,
    server_key: str,
    source: str,
    home: Home,
    *,
    authority: Path | None = None,
    policy: Policy | None = None,
    token: str = "",
    attack: Attack | None = None,
) -> Path:
    """Take part in a run until it is over; returns where the final model is. A signal to stop ends the process.

    Args:
        app: The app on this node's own disk.
        url: `wss://HOST:PORT`.
        server_key: The server's identity, as text; pinned.
        source: Where this node's data is; given to the app's `data`.
        home: This node's folder.
        authority: Certificate authority of the server (PEM); None for the system's.
        policy: What the data's owner allows.
        token: One-time enrolment token.
        attack: How the node lies, to test a federation; None: it does not.

    Raises:
        KoinonError: if the node cannot take part.
    """
    if not home.identity.exists() and not token:
        raise AdmissionError(
            f"this node has no identity in {home.folder}; make one: koinon enroll new --home {home.folder}"
        )
    identity = home.own_identity()
    data = app.node_data(source)
    address_key, context = parse_key(server_key), client_context(authority)

    async def main() -> Path | None:
        address = Address(url, address_key, context)
        node = Node(app.federation, address, identity, data, home.folder, policy or Policy(), token, attack)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, node.stop)
        return await node.run()

    with asyncio.Runner() as runner:
        model = runner.run(main())
        if model is None:
            # Training goes on on a thread that cannot be stopped; whatever must outlive it is on the disk.
            os._exit(STOPPED)
        return model
