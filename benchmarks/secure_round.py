"""What a secure sum costs a whole round: ten node processes, a million parameters, TLS on loopback, everything durable.

The measure is the time from one round's closing to the next one's, beside the same federation without a secure sum, whose
run is made before and after it. The nodes share the machine's cores.
"""

import itertools
import statistics
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.trials import closings, trial
from koinon.durable.store import Store

WARMUP = 3
TARGET = 1.5


def measure(folder: Path, quick: bool) -> list[Figure]:
    nodes, rounds = (3, 6) if quick else (10, 20)
    before = _run(folder / "before", "million.py", nodes, rounds)
    secret = _run(folder / "secret", "million.py:secret", nodes, rounds)
    after = _run(folder / "after", "million.py", nodes, rounds)
    plain = (before[0] + after[0]) / 2
    return [
        Figure(
            "a round with SecureSum, 16 bits",
            1000 * secret[0],
            "ms",
            1000 * plain,
            f"at most {TARGET}x the plain round",
            secret[0] <= TARGET * plain,
        ),
        Figure("bytes from a node, a round", secret[1] / 1e6, "MB", before[1] / 1e6),
    ]


def _run(folder: Path, app: str, nodes: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a round, and the bytes that a node sends in one."""
    names = {str(number): f"population:{number}/{nodes}" for number in range(nodes)}
    with trial(app, names, folder, ["--min-nodes", str(nodes), "--rounds", str(rounds)]) as (run, _):
        for name in names:
            run.start_node(name)
        run.wait()
    closed = closings(folder)[WARMUP:]
    store = Store(folder)
    sent = store.history()[-1].bytes_up / nodes
    store.close()
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(closed)), sent
