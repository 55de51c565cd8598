"""From one seed: a federation, how patient its server is, and everything that will go wrong, and when."""

import random
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from koinon.core.types import ClientId
from koinon.run.settings import Settings
from koinon.secure.secure_sum import SecureSum
from koinon.server.sampling import Everyone, Poisson, Sampler, Uniform
from koinon.testing.toy import Whim

Fault: TypeAlias = Literal[
    "connection cut",
    "half-open connection",
    "server crash",
    "node crash",
    "partition",
    "slow node",
    "clock forward",
    "clock backward",
    "clone",
    "server disk full",
    "node disk full",
    "polite leave",
    "leave and return",
    "machine lost",
    "operator stops",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_LIKELIHOOD = (4, 3, 4, 4, 3, 2, 1, 1, 2, 2, 2, 0.3, 0.7, 0.5, 0.2)


@dataclass(frozen=True)
class Happening:
    """Something that goes wrong at a time, for so many seconds, to a node if it concerns one."""

    time: float
    fault: Fault
    node: ClientId
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A run of the simulator.

    Attributes:
        nodes: How many there are.
        sample: Who is asked.
        settings: How the server waits.
        late: Seconds after which each node first starts.
        happenings: What goes wrong.
        whims: What goes wrong inside training.
        declining: A node whose owner declines small cohorts, or None.
        tampering: Chance for each frame to be lost, repeated, overtaken or damaged.
        deadly: Chance, at every write and between effects, that the process is killed.
        latency_s: Longest time a frame takes.
        healing: When all this ends.
        secure: How updates are added up secretly, or None.
    """

    nodes: int
    rounds: int
    sample: Sampler
    settings: Settings
    late: tuple[float, ...]
    happenings: tuple[Happening, ...]
    whims: dict[tuple[int, int], Whim]
    declining: int | None
    tampering: float
    deadly: float
    latency_s: float
    healing: float
    secure: SecureSum | None = None


def secure_plan(rng: random.Random) -> Plan:
    """Draw one whose updates are added up secretly."""
    drawn, nodes, minimum = plan(rng), rng.randint(3, 6), rng.choice((2, 3))
    secure = SecureSum(
        clip=20.0,
        minimum=minimum,
        corrupt=rng.choice((0.0, 0.1)),
        dropout=rng.choice((0.1, 0.3)),
        server=rng.choice(("lying", "curious")),
    )
    return replace(
        drawn,
        nodes=nodes,
        sample=rng.choice((Everyone(), Everyone(), Uniform(rng.randint(minimum, nodes)))),
        settings=replace(drawn.settings, minimum_nodes=rng.randint(minimum, nodes)),
        late=tuple(rng.choice((0.0, rng.uniform(0.0, drawn.healing))) for _ in range(nodes)),
        happenings=_happenings(rng, nodes, drawn.healing) if drawn.happenings else (),
        whims=_whims(rng, nodes, drawn.rounds),
        declining=None if drawn.declining is None else rng.randrange(nodes),
        secure=secure,
    )


def plan(rng: random.Random) -> Plan:
    """Draw one."""
    nodes, rounds = rng.randint(2, 5), rng.randint(1, 4)
    healing = rng.uniform(5.0, 45.0)
    calm = rng.random() < 0.05
    return Plan(
        nodes=nodes,
        rounds=rounds,
        sample=rng.choice((Everyone(), Everyone(), Uniform(rng.randint(1, nodes)), Poisson(0.7))),
        settings=Settings(
            minimum_nodes=rng.randint(1, nodes),
            over_selection=rng.choice((0.0, 0.0, 0.3, 1.0)),
            quorum=rng.choice((1.0, 0.7, 0.5)),
            deadline_s=rng.uniform(5.0, 30.0),
            silence_s=rng.uniform(10.0, 15.0),
        ),
        late=tuple(rng.choice((0.0, rng.uniform(0.0, healing))) for _ in range(nodes)),
        happenings=() if calm else _happenings(rng, nodes, healing),
        whims=_whims(rng, nodes, rounds),
        declining=rng.randrange(nodes) if rng.random() < 0.1 else None,
        tampering=0.0 if calm else rng.choice((0.0, 0.0, 0.01, 0.04)),
        deadly=0.0 if calm else rng.choice((0.0, 0.0, 0.003, 0.01)),
        latency_s=rng.choice((0.02, 0.2, 0.8)),
        healing=healing,
    )


def _happenings(rng: random.Random, nodes: int, healing: float) -> tuple[Happening, ...]:
    return tuple(
        Happening(rng.uniform(0.0, healing), fault, f"node-{rng.randrange(nodes)}", rng.uniform(0.2, 20.0))
        for fault in rng.choices(FAULTS, _LIKELIHOOD, k=rng.randint(0, 8))
    )


def _whims(rng: random.Random, nodes: int, rounds: int) -> dict[tuple[int, int], Whim]:
    if rng.random() < 0.7:
        return {}
    whims: tuple[Whim, ...] = get_args(Whim)
    return {(rng.randrange(nodes), rng.randint(1, rounds)): rng.choice(whims) for _ in range(rng.randint(1, 2))}
