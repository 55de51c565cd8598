"""What was cut short is gone on with: simulations, servers whose disk was full, nodes that were stopped or away."""

import asyncio
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from koinon.durable.store import Store
from koinon.protocol import session
from koinon.protocol.messages import Goodbye
from koinon.run.app import load_app
from koinon.run.host import STOPPED
from koinon.run.settings import Settings
from koinon.run.up import Trial
from koinon.wire.certificates import client_context
from koinon.wire.connect import connect
from koinon.wire.identity import Identity, parse_key

PATIENCE_S = 240.0


def koinon(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "koinon.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def until(what, *, trial=None):
    """Wait for something to be so."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := what()):
        assert time.monotonic() < deadline, trial and trial.log("server").read_text()
        time.sleep(0.05)
    return value


class Place:
    """A trial with two nodes whose server writes its log where a test can read it."""

    def __init__(self, folder: Path, app: str, *serve: str) -> None:
        nodes = {name: f"population:{name}/2" for name in ("0", "1")}
        self.trial = Trial(app, nodes, folder / "runs" / "place", ["--min-nodes", "2", *serve])

    def serve(self) -> None:
        """Start the server, and wait until it listens."""
        heard = self.said("server").count("nodes join by")
        with self.trial.log("server").open("ab") as log:
            self.trial.start_server(stdout=log.fileno(), stderr=log.fileno())
        until(lambda: self.said("server").count("nodes join by") > heard)

    def said(self, who: str) -> str:
        """A process's words."""
        log = self.trial.log(who)
        return log.read_text() if log.exists() else ""

    def wait(self, who: str) -> int:
        """A process's exit code."""
        process = self.trial.server if who == "server" else self.trial.process(who)
        return process.wait(PATIENCE_S)

    def digests(self) -> list[str]:
        """The models after the rounds of a run that is in order."""
        store = Store(self.trial.folder)
        store.verify()
        assert store.info().status == "finished"
        assert all(store.nodes().values())
        digests = [record.digest for record in store.history()]
        store.close()
        return digests


@pytest.fixture
def place(tmp_path, app):
    """Make a place; its processes end with the test."""
    made = []

    def make(name: str, *serve: str) -> Place:
        made.append(Place(tmp_path, app(name), *serve))
        return made[-1]

    yield make
    for each in made:
        each.trial.__exit__(None, None, None)


def test_a_simulation_that_was_killed_comes_to_the_same_bits(tmp_path, app, undisturbed):
    rounds, runs = 300, tmp_path / "runs"
    process = koinon("simulate", app("small"), "--rounds", rounds, "--clients", 3, "--runs", runs)
    for line in process.stderr:
        if line.startswith("round 3/"):
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    (folder,) = runs.iterdir()
    store = Store(folder)
    assert 3 <= store.completed() < rounds
    assert store.info().status == "running"
    store.close()
    out, _ = koinon("runs", "resume", folder.name, "--runs", runs, "--json").communicate()
    resumed = json.loads(out.splitlines()[-1])
    assert resumed["rounds"] == rounds
    assert resumed["digest"] == undisturbed(app("small"), 3, rounds).digests[-1]


def test_a_server_whose_disk_is_full_at_a_checkpoint_says_so_and_goes_on_when_it_is_not(place, app, undisturbed):
    here = place("bulky")
    here.serve()
    bytes_of_model = 4 * load_app(app("bulky")).federation.learner.layout.length
    unlimited = resource.prlimit(here.trial.server.pid, resource.RLIMIT_FSIZE)
    # An update fits, a checkpoint with the optimizer's two moments does not.
    resource.prlimit(here.trial.server.pid, resource.RLIMIT_FSIZE, (2 * bytes_of_model, unlimited[1]))
    for name in ("0", "1"):
        here.trial.start_node(name)
    until(lambda: "Close failed and is tried again" in here.said("server"), trial=here.trial)
    assert here.trial.completed() == 0
    resource.prlimit(here.trial.server.pid, resource.RLIMIT_FSIZE, unlimited)
    assert [here.wait(who) for who in ("server", "0", "1")] == [0, 0, 0]
    assert here.digests() == undisturbed(app("bulky"), 2).digests
    (line,) = (line for line in here.said("server").splitlines() if "tried again" in line)
    assert "File too large" in line
    assert "Traceback" not in here.said("server")


def test_the_final_model_reaches_a_node_that_was_away_even_from_a_server_that_started_again(place, app, tmp_path):
    here = place("small", "--rounds", "1")
    here.serve()
    here.trial.start_node("0")
    died = tmp_path / "died"
    here.trial.start_node("1", {"KOINON_KILL_AT": f"node between rounds:{died}"})  # its last update is acknowledged
    assert here.wait("1") == -signal.SIGKILL
    assert died.exists()
    assert here.wait("0") == 0
    assert here.trial.server.poll() is None  # it waits
    here.trial.server.send_signal(signal.SIGTERM)
    assert here.wait("server") == 0
    here.serve()
    here.trial.start_node("1")
    assert here.wait("1") == 0
    assert here.wait("server") == 0
    here.digests()
    models = [here.trial.folder / "nodes" / name / "place" / "model.safetensors" for name in ("0", "1")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_node_that_is_frozen_loses_its_place_and_one_that_is_stopped_leaves(place, app, undisturbed):
    here = place("small")
    here.serve()
    here.trial.start_node("0")
    until(lambda: "0 joined" in here.said("server"), trial=here.trial)
    frozen = here.trial.process("0")
    frozen.send_signal(signal.SIGSTOP)

    async def come(identity, url, key, authority):
        """With the same identity, until let in; what was heard before."""
        heard = []
        while True:
            connection, answer = await connect(
                url, identity, pinned=key, context=client_context(authority), definition=definition
            )
            await connection.close()
            if not isinstance(answer, Goodbye):
                return heard
            heard.append(answer.reason)
            await asyncio.sleep(0.2)

    definition = load_app(app("small")).federation.digest
    clone = Identity.load(here.trial.folder / "nodes" / "0" / "identity.pem")
    words = here.said("server").split("koinon join ")[1].split()
    authority = Path(words[words.index("--ca") + 1])
    began = time.monotonic()
    heard = asyncio.run(come(clone, words[0], parse_key(words[words.index("--server") + 1]), authority))
    assert set(heard) == {"0 is connected already; if this is not you, have its identity revoked"}
    # Not before the frozen one had its time to answer, and long before it would have been cut for its silence.
    assert session.PROBE_S - 2 < time.monotonic() - began < Settings().silence_s

    frozen.send_signal(signal.SIGCONT)
    until(lambda: here.said("server").count("0 joined") == 2, trial=here.trial)  # it came back by itself
    frozen.terminate()
    assert here.wait("0") == STOPPED == 143
    until(lambda: here.said("server").count("0 left") == 2, trial=here.trial)
    assert "Traceback" not in here.said("0") + here.said("server")

    for name in ("0", "1"):
        here.trial.start_node(name)
    assert [here.wait(who) for who in ("server", "0", "1")] == [0, 0, 0]
    assert here.digests() == undisturbed(app("small"), 2).digests
