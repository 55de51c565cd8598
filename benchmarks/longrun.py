"""500 rounds: neither the server nor a node grows. One real node process, four that only speak the protocol."""

import contextlib
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.nodes import Fleet
from benchmarks.trials import APPS, memory, trial, until
from koinon.run.app import load_app

LIGHT = 4
SHARE = 0.05


def measure(folder: Path, quick: bool) -> list[Figure]:
    rounds, step = (9, 3) if quick else (500, 50)
    federation = load_app(str(APPS / "tiny.py")).federation
    update = folder / "update"
    update.write_bytes(bytes(4 * federation.learner.layout.length))
    names = {"real": "population:0/1"} | {f"light-{number}": "" for number in range(LIGHT)}
    arguments = ["--min-nodes", str(len(names)), "--rounds", str(rounds + 1)]
    server: dict[int, float] = {}
    node: dict[int, float] = {}
    with contextlib.ExitStack() as stack:
        run, address = stack.enter_context(trial("tiny.py", names, folder / "run", arguments))
        run.start_node("real")
        light = [name for name in names if name != "real"]
        stack.enter_context(Fleet(light, folder / "run", address, federation.digest, update).afloat())
        assert run.server is not None
        for due in range(step, rounds + 1, step):
            until(run, lambda due=due: run.completed() >= due, 900)
            server[due] = memory(run.server.pid)
            node[due] = memory(run.process("real").pid)
    figures = []
    for what, sizes in (("server", server), ("node", node)):
        first, *later = sizes.values()
        growth = max(later) / first - 1
        figures += [Figure(f"{what}: resident after round {due}", size, "MiB", first) for due, size in sizes.items()]
        figures.append(
            Figure(f"{what}: greatest growth since round {step}", 100 * growth, "%", None, "<= 5 %", growth <= SHARE)
        )
    return figures
