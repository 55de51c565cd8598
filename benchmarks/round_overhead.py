"""What a round costs besides training: ten node processes, 1,000 parameters, TLS on loopback, everything durable.

The measure is the time from one round's closing to the next one's, from the audit log, so that nothing is left
out; the first rounds are dropped. From its median we take what training alone needs: the processor time of one
client's training, times the nodes, over the cores. The baseline are as many bare processes that exchange as many
bytes and keep nothing.
"""

import itertools
import os
import statistics
import time
from pathlib import Path

from benchmarks import bare
from benchmarks.figures import Figure
from benchmarks.trials import APPS, closings, processor, trial, until
from koinon.core.noise import Noise
from koinon.durable.store import Store
from koinon.run.app import load_app
from koinon.run.up import Trial
from koinon.run.work import first_state, train
from koinon.wire.certificates import make_authority

TARGET_MS = 50
WARMUP = 5


def measure(folder: Path, quick: bool) -> list[Figure]:
    nodes, rounds = (2, 40) if quick else (10, 200)
    names = {str(number): f"population:{number}/{nodes}" for number in range(nodes)}
    arguments = ["--min-nodes", str(nodes), "--rounds", str(rounds)]
    with trial("tiny.py", names, folder / "run", arguments) as (run, _):
        for name in names:
            run.start_node(name)
        busy = _processor(run, WARMUP, rounds - 2)
        run.wait()
    closed = closings(folder / "run")[WARMUP:]
    period = statistics.median(later - earlier for earlier, later in itertools.pairwise(closed))
    beyond = period - _training() * nodes / min(nodes, os.cpu_count() or 1)
    loop = _bare(folder, nodes, rounds)
    return [
        Figure("a round, from closing to closing", 1000 * period, "ms", 1000 * loop),
        Figure(
            "beyond the training itself",
            1000 * beyond,
            "ms",
            1000 * loop,
            f"< {TARGET_MS} ms",
            1000 * beyond < TARGET_MS,
        ),
        Figure("processor time of all processes for a round", 1000 * busy, "ms"),
    ]


def _processor(run: Trial, first: int, last: int) -> float:
    """Processor seconds for a round, over the rounds from `first` to about `last`."""
    assert run.server is not None
    pids = [run.server.pid, *(run.process(name).pid for name in run.nodes)]
    until(run, lambda: run.completed() >= first)
    begun, used = run.completed(), sum(map(processor, pids))
    until(run, lambda: run.completed() >= max(begun + 1, (first + last) // 2))  # a short run may be further already
    return (sum(map(processor, pids)) - used) / (run.completed() - begun)


def _training() -> float:
    """Processor seconds of one client's training."""
    federation, data = (app := load_app(str(APPS / "tiny.py"))).federation, app.node_data("population:0/1")
    model = first_state(federation, 0).model
    state = dict(federation.strategy.stages.init(federation.learner.layout))
    seconds = []
    for round in range(1, 50):
        began = time.process_time()
        train(federation, 0, Noise.seeded(0), round, "0", model, data, state, {})
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def _bare(folder: Path, nodes: int, rounds: int) -> float:
    """Median seconds of a round of the bare loop, with the bytes of one of Koinon's rounds."""
    store = Store(folder / "run")
    record = store.history()[-1]
    store.close()
    made = make_authority(folder / "bare")
    certificates = bare.Certificates(made.authority, made.certificate, made.key)
    seconds = bare.loop(certificates, nodes, rounds, record.bytes_up // nodes, record.bytes_down // nodes)
    return statistics.median(seconds[WARMUP:])
