"""Time to 85 % accuracy on Fashion-MNIST through a DSL line: the recommended codecs beside float32.

A server and ten nodes, each a process behind a line of 10 Mbit/s up and 50 Mbit/s down with a round trip of 40 ms, over
TLS. All of them share this machine's cores, so training takes longer than at ten sites; most parameters lie in a dense layer,
which keeps it short.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.trials import APPS
from koinon.core.network import NETWORKS
from koinon.durable.history import RoundRecord
from koinon.durable.store import Store
from koinon.run.up import Trial

ACCURACY = 0.85


def measure(folder: Path, quick: bool) -> list[Figure]:
    plain, light = (_history(folder / name, f"fashion.py:{name}", quick) for name in ("plain", "light"))
    reached = ACCURACY if not quick else 0.0
    slow, fast = _seconds_until(plain, reached), _seconds_until(light, reached)
    sent, less = (_megabytes(history) / len(history) for history in (plain, light))
    return [
        Figure("until 85 %, Eden(1) up and Quantize(8) down", fast, "s", slow, "sooner than float32", fast < slow),
        Figure("that is", _rounds_until(light, reached), "rounds", _rounds_until(plain, reached)),
        Figure("best accuracy in all rounds", 100 * _best(light), "%", 100 * _best(plain)),
        Figure("a round, both ways, all nodes", less, "MB", sent),
    ]


def _history(folder: Path, app: str, quick: bool) -> list[RoundRecord]:
    nodes = 2 if quick else 10
    names = {str(place): f"population:{place}/{nodes}" for place in range(nodes)}
    arguments = ["--min-nodes", str(nodes), "--quorum", "1", "--seed", "0", *(["--rounds", "2"] if quick else [])]
    with Trial(str(APPS / app), names, folder, arguments, network=NETWORKS["dsl"]) as trial:
        trial.start_server()
        for name in names:
            trial.start_node(name)
        trial.wait()
    store = Store(folder)
    try:
        return store.history()
    finally:
        store.close()


def _rounds_until(history: Sequence[RoundRecord], accuracy: float) -> float:
    """Rounds until an evaluation reaches the accuracy; infinite if none does."""
    evaluated = (record for record in history if record.metrics)
    return next((record.round for record in evaluated if record.metrics["accuracy"] >= accuracy), float("inf"))


def _seconds_until(history: Sequence[RoundRecord], accuracy: float) -> float:
    """Seconds that those rounds took, from opening to closing."""
    rounds = _rounds_until(history, accuracy)
    through = itertools.takewhile(lambda record: record.round <= rounds, history)
    return sum(record.seconds for record in through) if rounds <= len(history) else float("inf")


def _best(history: Sequence[RoundRecord]) -> float:
    return max(record.metrics["accuracy"] for record in history if record.metrics)


def _megabytes(history: Sequence[RoundRecord]) -> float:
    return sum(record.bytes_up + record.bytes_down for record in history) / 1e6
