"""The server's peak memory does not grow with the number of nodes: 25 million parameters, 5, 20 and 50 nodes.

The peak is VmHWM of the server process, which counts neither the page cache nor files. The base is the same of a
server that listens for a model of 1,000 parameters and has seen no node: Python, torch and what Koinon imports.
Two rounds each; the nodes are real to the server (identity, TLS, protocol), but train nothing.
"""

import statistics
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from benchmarks.nodes import Fleet
from benchmarks.trials import APPS, memory, trial, until
from koinon.run.app import load_app

MIB = 1 << 20
ALLOWANCE_MIB = 64
ROUNDS = 2


def measure(folder: Path, quick: bool) -> list[Figure]:
    app, counts = ("tiny.py", (2, 4)) if quick else ("large.py", (5, 20, 50))
    federation = load_app(str(APPS / app)).federation
    model = 4 * federation.learner.layout.length
    update = folder / "update"
    values = np.random.default_rng(0).standard_normal(model // 4, dtype=np.float32)
    update.write_bytes((1e-3 * values).tobytes())
    base = without_nodes(folder / "base")
    bound = base + 3 * model / MIB + ALLOWANCE_MIB
    figures = [Figure("base: a server with a tiny model, no node", base, "MiB")]
    peaks = []
    for count in counts:
        peaks.append(peak(app, folder / f"nodes-{count}", count, federation.digest, update))
        target = f"<= {bound:,.0f} MiB: base + 2 models + 1 update + {ALLOWANCE_MIB}"
        figures.append(Figure(f"peak with {count} nodes", peaks[-1], "MiB", base, target, peaks[-1] <= bound))
    spread = max(peaks) - min(peaks)
    same = spread <= 0.05 * statistics.median(peaks)
    figures.append(Figure("greatest less smallest peak", spread, "MiB", None, "the same: within 5 %", same))
    return figures


def without_nodes(folder: Path) -> float:
    with trial("tiny.py", {}, folder, ["--min-nodes", "1"]) as (run, _):
        assert run.server is not None
        return memory(run.server.pid, "VmHWM")


def peak(app: str, folder: Path, count: int, definition: str, update: Path) -> float:
    names = {f"node-{number:02}": "" for number in range(count)}
    arguments = ["--min-nodes", str(count), "--rounds", str(ROUNDS + 1)]
    with trial(app, names, folder, arguments) as (run, address):
        assert run.server is not None
        with Fleet(list(names), folder, address, definition, update).afloat():
            until(run, lambda: run.completed() >= ROUNDS, 1800)
            return memory(run.server.pid, "VmHWM")
