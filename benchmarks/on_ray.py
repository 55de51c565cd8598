"""What Ray costs: the same rounds by two actors of a Ray of this machine, and by two worker processes."""

from dataclasses import replace
from pathlib import Path

import koinon as kn
from benchmarks.figures import Figure
from benchmarks.simulate import in_turns
from benchmarks.workloads import W1, images, shares, simulated

SLOTS = 2


def measure(folder: Path, quick: bool) -> list[Figure]:
    load = replace(W1, clients=10, cohort=4) if quick else W1
    data, source = images(quick)
    population = kn.Population.of(shares(load, data))
    ways = {
        "ray": simulated(load, population, folder, 1, kn.OnRay(actors=SLOTS)),
        "workers": simulated(load, population, folder, SLOTS),
    }
    took = in_turns(ways, 1 if quick else 3, 1 if quick else 10)
    what = f"{load.name}, a round of {load.cohort} of {load.clients:,} clients by two actors, {source}"
    return [Figure(what, 1000 * took["ray"], "ms", 1000 * took["workers"])]
