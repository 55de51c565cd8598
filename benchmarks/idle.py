"""1,000 nodes that are connected and have nothing to do but send a sign of life every 15 seconds.

The server waits for one node more, so no round is open. Its processor time is taken over two heartbeats of
everyone; the nodes are connections of another process.
"""

import json
import resource
import time
import urllib.request
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.nodes import Fleet
from benchmarks.trials import APPS, Address, memory, processor, trial, until
from koinon.run.app import load_app
from koinon.run.join import HEARTBEAT_S
from koinon.wire.certificates import client_context

MOST_MIB = 400
MOST_SHARE = 0.1


def measure(folder: Path, quick: bool) -> list[Figure]:
    count, seconds = (20, 2.0) if quick else (1000, 2 * HEARTBEAT_S)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the server and the nodes inherit it
    definition = load_app(str(APPS / "tiny.py")).federation.digest
    update = folder / "update"
    update.write_bytes(b"")
    names = {f"node-{number:04}": "" for number in range(count)}
    with trial("tiny.py", names, folder / "run", ["--min-nodes", str(count + 1)]) as (run, address):
        assert run.server is not None
        pid, before = run.server.pid, memory(run.server.pid)
        with Fleet(list(names), folder / "run", address, definition, update).afloat():
            until(run, lambda: _connected(address) == count, 600)
            used = processor(pid)
            time.sleep(seconds)
            share = (processor(pid) - used) / seconds
            size = memory(pid, "VmHWM")
            if _connected(address) != count:
                raise RuntimeError("nodes were lost while they did nothing")
    nodes = f"{count:,} idle nodes"
    return [
        Figure(f"{nodes}: server's memory", size, "MiB", before, f"< {MOST_MIB} MiB", size < MOST_MIB),
        Figure(f"{nodes}: of one core", 100 * share, "%", None, f"< {MOST_SHARE:.0%}", share < MOST_SHARE),
        Figure(f"{nodes}: memory for each", 1024 * (size - before) / count, "KiB"),
    ]


def _connected(address: Address) -> int:
    health = address.url.replace("wss", "https") + "/healthz"
    with urllib.request.urlopen(health, context=client_context(address.authority), timeout=30) as answer:  # noqa: S310
        return int(json.load(answer)["nodes"])
