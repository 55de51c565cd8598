"""Virtual time until a model is good, where clients are fast and slow: rounds against steps that wait for nobody.

    python -m benchmarks.stragglers [NAME ...] [--quick] [--folder DIR] [--plot FILE]

1,000 clients of 60 images of Fashion-MNIST each, labels by Dirichlet 0.3, on the devices of `kn.Fleet.named("phones")`: speed
and bandwidth vary by a factor of a hundred, and one in twenty drops out. Every way has 100 clients at work at a time and trains
the same dense network (784-200-10). A way takes about a minute on one thread and can be stopped; it goes on where it was.
"""

import argparse
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import koinon as kn
from benchmarks.uplink import random_images
from benchmarks.workloads import mlp
from koinon.view.picture import draw_curves

ACCURACY = 0.80
AT_WORK = 100
DEVICES = kn.Fleet.named("phones")


@dataclass(frozen=True)
class Way:
    """How the server goes on.

    Attributes:
        strategy: Its strategy, for so many clients at work.
        clock: How long it waits.
        rounds: Rounds, or steps.
        every: Of which one is evaluated.
    """

    strategy: kn.Strategy
    clock: kn.Clock
    rounds: int
    every: int = 1


@dataclass(frozen=True)
class Course:
    """How a run went.

    Attributes:
        name: The way's.
        points: (virtual seconds, test accuracy) at every evaluation.
        updates: That counted.
    """

    name: str
    points: list[tuple[float, float]]
    updates: int

    @property
    def reached(self) -> float | None:
        """Virtual seconds when the accuracy was first reached, None if it never was."""
        return next((at for at, accuracy in self.points if accuracy >= ACCURACY), None)


WAIT = kn.Clock(devices=DEVICES)
BASELINE = "everybody is waited for"
WAYS: Mapping[str, Way] = {
    BASELINE: Way(kn.fedavg(kn.Uniform(AT_WORK)), WAIT, rounds=300),
    "a third is not waited for": Way(
        kn.fedavg(kn.Uniform(AT_WORK)), kn.Clock(devices=DEVICES, over_selection=0.5), rounds=400
    ),
    "FedBuff, 10 at a time": Way(kn.fedbuff(10, AT_WORK), WAIT, rounds=3000, every=10),
    "FedAsync": Way(kn.fedasync(AT_WORK, mixing=0.1), WAIT, rounds=20_000, every=100),
}


def course(name: str, folder: Path, quick: bool) -> Course:
    """Run a way, or go on with its run."""
    way, data = WAYS[name], random_images() if quick else kn.data.load("fashion-mnist")
    assert data.test is not None
    split = kn.EqualDirichlet(0.3)
    population = kn.DataSet(data.train).split(split, clients=200 if quick else 1000, seed=0)
    learner = kn.TorchLearner(
        mlp,
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.1),
        batch_size=20,
        metrics=(kn.Accuracy(),),
    )
    evaluation = kn.Evaluation(data.test, every=1 if quick else way.every, federated=False)
    federation = kn.Federation(learner, way.strategy, 3 if quick else way.rounds, evaluation)
    runs = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    begun = next((path.parent.name for path in runs.glob("*/run.db")), None)
    run = kn.simulate(federation, population, runs=runs, name="stragglers", resume=begun, clock=way.clock)
    points = [(record.clock_s or 0.0, record.metrics["accuracy"]) for record in run.history if record.metrics]
    updates = sum(part.outcome == "accepted" for record in run.history for part in record.participants)
    return Course(name, points, updates)


def table(courses: list[Course]) -> str:
    """A line for each way, in Markdown."""
    base = next((each.reached for each in courses if each.name == BASELINE), None)
    lines = [
        f"| way | virtual seconds until {ACCURACY:.0%} | waiting / this | best accuracy | updates in a virtual minute |",
        "|---|---|---|---|---|",
    ]
    for each in courses:
        reached = "never" if each.reached is None else f"{each.reached:,.0f}"
        ratio = "" if base is None or each.reached is None else f"{base / each.reached:.1f}x"
        best, last = max(accuracy for _, accuracy in each.points), each.points[-1][0]
        lines.append(f"| {each.name} | {reached} | {ratio} | {100 * best:.1f} % | {60 * each.updates / last:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stragglers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WAYS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="three steps on random images, only to see that it works")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/stragglers"), help="for the runs; %(default)s by default"
    )
    parser.add_argument("--plot", type=Path, help="where to draw, as .svg")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(WAYS):
        parser.error(f"no way is called {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    courses = [course(name, arguments.folder, arguments.quick) for name in arguments.names or WAYS]
    print(table(courses))
    if arguments.plot is not None:
        minutes = {each.name: [(at / 60, accuracy) for at, accuracy in each.points] for each in courses}
        draw_curves(minutes, arguments.plot, "virtual minutes", "test accuracy", "log", ACCURACY)


if __name__ == "__main__":
    main()
