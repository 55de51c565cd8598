"""The fault simulator: from one seed, a whole run of the real protocol in which things go wrong.

    python -m koinon.testing.faults --seeds 100000 [--start 0] [--jobs 2] [--secure]
    python -m koinon.testing.faults --replay SEED [--secure]

Everything that happens follows from the seed: latencies, losses, crashes, full disks, clock jumps. After every
event an observer compares what was promised with what is durable (`koinon.testing.invariants`).
"""

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from koinon.testing.invariants import Broken
from koinon.testing.plan import plan, secure_plan
from koinon.testing.process import Parts
from koinon.testing.world import World

BATCH = 50
_MEMORY = Path("/dev/shm")
"""A disk whose syncs cost nothing, where there is one."""


@dataclass(frozen=True)
class Outcome:
    """How a simulated run went.

    Attributes:
        status: How it ended, or "waiting".
        rounds: Closed rounds.
        waiting_for: What it said it waits for, if anything.
        faults: How often each fault was injected.
        events: How many events happened.
        seconds: How long it took on the virtual clock.
    """

    seed: int
    status: str
    rounds: int
    waiting_for: str
    faults: Mapping[str, int]
    events: int
    seconds: float


def simulate_faults(
    seed: int, parts: Parts = Parts(), trace: Callable[[str], None] | None = None, *, secure: bool = False
) -> Outcome:
    """Simulate one run.

    Args:
        seed: Decides everything.
        parts: The code under test.
        trace: Is told what happens, line by line.
        secure: Whether updates are added up secretly.

    Raises:
        Broken: if an invariant does not hold; the message ends with the command that replays the run.
    """
    rng = random.Random(seed)  # noqa: S311 - chooses faults, keeps no secrets
    drawn = secure_plan(rng) if secure else plan(rng)
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        world = World(seed, Path(folder), drawn, rng, parts)
        world.around.trace = trace
        world.around.tell("world", str(drawn))
        try:
            waiting = world.run()
        except Exception as error:
            what = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
            raise Broken(
                f"seed {seed}, {world.around.clock.now:.3f} s: {what}\n{replay_command(seed, secure)}"
            ) from error
        finally:
            world.close()
    observer = world.around.observer
    status = "waiting" if observer.status == "running" else observer.status
    return Outcome(seed, status, observer.completed, waiting, world.faults, world.events, world.around.clock.now)


def replay_command(seed: int, secure: bool = False) -> str:
    """What to type to see a seed's run again."""
    return f"python -m koinon.testing.faults --replay {seed}{' --secure' if secure else ''}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when an invariant does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m koinon.testing.faults", description="Simulate faults, seed by seed."
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="simulate one seed and print what happens")
    parser.add_argument("--secure", action="store_true", help="add updates up secretly")
    options = parser.parse_args(arguments)
    _prepare()
    try:
        if options.replay is not None:
            print(simulate_faults(options.replay, trace=print, secure=options.secure))
        else:
            _many(range(options.start, options.start + options.seeds), options.jobs, options.secure)
    except Broken as broken:
        print(broken)
        return 1
    return 0


def _many(seeds: range, jobs: int, secure: bool) -> None:
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    done = events = 0
    with ProcessPoolExecutor(jobs, initializer=_prepare) as pool:
        batches = [seeds[first : first + BATCH] for first in range(0, len(seeds), BATCH)]
        try:
            for outcomes in pool.map(partial(_batch, secure), batches):
                for outcome in outcomes:
                    faults.update(outcome.faults)
                    ends[outcome.status] += 1
                    events += outcome.events
                done += len(outcomes)
                if sys.stderr.isatty():
                    print(f"\r{done} of {len(seeds)} seeds", end="", file=sys.stderr, flush=True)
        except Broken:
            pool.shutdown(cancel_futures=True)
            raise
    print("\n".join(_table(done, events, ends, faults)))


def _prepare() -> None:
    """One thread, and no log: failures of training are part of the plan."""
    torch.set_num_threads(1)
    logging.getLogger("koinon").setLevel(logging.CRITICAL)


def _batch(secure: bool, seeds: Sequence[int]) -> list[Outcome]:
    return [simulate_faults(seed, secure=secure) for seed in seeds]


def _table(done: int, events: int, ends: Mapping[str, int], faults: Mapping[str, int]) -> Iterator[str]:
    yield f"{done} seeds, {events} events, every invariant held after each"
    for title, counts in (("Outcome", ends), ("Fault injected", faults)):
        yield f"\n{title:<32}{'times':>12}"
        for what, times in sorted(counts.items(), key=lambda item: -item[1]):
            yield f"{what:<32}{times:>12}"


if __name__ == "__main__":
    sys.exit(main())
