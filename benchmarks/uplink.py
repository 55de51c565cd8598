"""Bytes that clients send until a model is good, codec by codec: Fashion-MNIST with 100 clients that differ.

    python -m benchmarks.uplink [NAME ...] [--quick] [--folder DIR] [--plot FILE]

Every codec trains the same convolutional network from the same start with the same cohorts. It takes one thread, and five
to six minutes for each codec; a run that was stopped goes on where it was when the same folder is given again. `--plot`
draws accuracy over bytes, and needs `pip install 'koinon[plot]'`. `--quick` only shows that it works, on random images.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import koinon as kn
from koinon.update.codec import Codec
from koinon.view.picture import draw_curves

CLIENTS, COHORT, ROUNDS, EVERY = 100, 10, 50, 5
ACCURACY = 0.85
CODECS: Mapping[str, Codec] = {
    "float32": kn.Float32(),
    "4 bits": kn.Quantize(4) >> kn.Zstd(),
    "1 bit, rotated": kn.Eden(1),
    "1 bit of every 4th": kn.RandomMask(0.25) >> kn.Eden(1),
    "largest 1 %, feedback": kn.ErrorFeedback(kn.TopK(0.01) >> kn.Quantize(4)),
}
BASELINE = "float32"


@dataclass(frozen=True)
class Course:
    """How one codec's run went.

    Attributes:
        name: The codec's.
        points: (bytes that all clients have sent, test accuracy) at every evaluation.
        bits: That were sent for each parameter, on average.
    """

    name: str
    points: Sequence[tuple[int, float]]
    bits: float

    @property
    def reached(self) -> int | None:
        """Bytes sent when the accuracy was first reached, None if it never was."""
        return next((sent for sent, accuracy in self.points if accuracy >= ACCURACY), None)

    @property
    def final(self) -> float:
        """Mean accuracy of the last three evaluations."""
        last = [accuracy for _, accuracy in self.points[-3:]]
        return sum(last) / len(last)


def network() -> nn.Module:
    """1.66 million parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def federation(codec: Codec, test: kn.Samples, quick: bool) -> kn.Federation:
    learner = kn.TorchLearner(
        small if quick else network,
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.15),
        batch_size=20,
        eval_batch_size=100,
        metrics=(kn.Accuracy(),),
    )
    strategy = kn.fedavg(sample=kn.Uniform(COHORT), codec=codec)
    rounds, every = (2, 1) if quick else (ROUNDS, EVERY)
    return kn.Federation(learner, strategy, rounds, kn.Evaluation(test, every=every, federated=False))


def course(name: str, folder: Path, quick: bool) -> Course:
    """Run a codec, or go on with its run."""
    data = random_images() if quick else kn.data.load("fashion-mnist")
    assert data.test is not None
    population = kn.DataSet(data.train).split(kn.Dirichlet(0.3), clients=CLIENTS, seed=0)
    return course_of(name, federation(CODECS[name], data.test, quick), population, folder)


def course_of(name: str, federation: kn.Federation, population: kn.Population, folder: Path) -> Course:
    """Run a federation in a folder of its own, or go on with its run."""
    runs = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    begun = next((path.parent.name for path in runs.glob("*/run.db")), None)
    run = kn.simulate(federation, population, runs=runs, name="uplink", resume=begun)
    sent, updates, points = 0, 0, list[tuple[int, float]]()
    for record in run.history:
        sent += sum(part.bytes_up for part in record.participants)
        updates += sum(part.outcome == "accepted" for part in record.participants)
        if record.metrics:
            points.append((sent, record.metrics["accuracy"]))
    return Course(name, points, 8 * sent / (updates * run.info.parameters))


def table(courses: Sequence[Course]) -> str:
    """A line for each codec, in Markdown."""
    base = next((each for each in courses if each.name == BASELINE), None)
    lines = [
        "| codec | bits for a parameter | MB until 85 % | float32 / this | accuracy at the end |",
        "|---|---|---|---|---|",
    ]
    for each in courses:
        reached = "never" if each.reached is None else f"{each.reached / 1e6:,.1f}"
        ratio = ""
        if base is not None and base.reached is not None and each.reached is not None:
            ratio = f"{base.reached / each.reached:.1f}x"
        change = "" if base in (None, each) else f" ({100 * (each.final - base.final):+.2f})"
        lines.append(f"| {each.name} | {each.bits:.2f} | {reached} | {ratio} | {100 * each.final:.2f} %{change} |")
    return "\n".join(lines)


def random_images() -> kn.DataSet:
    """2,000 images of noise to train on, 100 to test on."""
    rng = torch.Generator().manual_seed(0)
    inputs, targets = torch.rand(2100, 1, 28, 28, generator=rng), torch.randint(10, (2100,), generator=rng)
    return kn.DataSet(kn.Samples(inputs[:2000], targets[:2000]), kn.Samples(inputs[2000:], targets[2000:]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.uplink", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CODECS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="the smallest setting, only to see that it works")
    parser.add_argument("--folder", type=Path, default=Path("runs/uplink"), help="for the runs; %(default)s by default")
    parser.add_argument("--plot", type=Path, help="where to draw, as .svg")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(CODECS)
    if unknown:
        parser.error(f"no codec is called {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    courses = [course(name, arguments.folder, arguments.quick) for name in arguments.names or CODECS]
    print(table(courses))
    if arguments.plot is not None:
        curves = {each.name: [(sent / 1e6, accuracy) for sent, accuracy in each.points] for each in courses}
        draw_curves(curves, arguments.plot, "MB that all clients have sent", "test accuracy", "log", ACCURACY)


if __name__ == "__main__":
    main()
