"""How much liars cost: every robust strategy under every attack, by the share of liars and how unlike the clients are.

    python -m benchmarks.robust_grid [--folder DIR] [--quick] [--draw FILE]

Fashion-MNIST, 20 clients with 300 images each and momentum at the client, an MLP 784-64-10, 50 rounds of 6 steps. A
cell that is done is kept in the folder, so the grid can be ended and gone on with; all of it takes the better part of an
hour on one core. `--quick` computes a corner of it on random images: its figures mean nothing.
"""

import argparse
import functools
import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

import koinon as kn
from koinon.aggregate.reducer import Reducer
from koinon.attack.attack import Attack
from koinon.core.rng import generator
from koinon.view import picture
from koinon.view.progress import Quiet

CLIENTS, EXAMPLES, ROUNDS, STEPS = 20, 300, 50, 6
SHARES = (0.1, 0.2, 0.3, 0.4)
MIXES = (0.5, 1.0, 0.1)
"""Concentrations of the Dirichlet distribution of labels; small ones make clients unlike."""

ATTACKS: Mapping[str, Attack] = {
    "sign flip": kn.attack.SignFlip(1.0),
    "Gaussian": kn.attack.Gaussian(3.0),
    "label flip": kn.attack.LabelFlip(10),
    "optimal ALIE": kn.attack.LineSearch(kn.attack.ALIE(1.0)),
    "optimal IPM": kn.attack.LineSearch(kn.attack.IPM(1.0)),
    "Min-Max": kn.attack.MinMax(),
    "Min-Sum": kn.attack.MinSum(),
    "mimic": kn.attack.Mimic(),
}

Cell = tuple[str, str, float, float]
"""Rule, attack, share of liars, concentration."""


def rules(f: int) -> dict[str, Reducer]:
    """The rules for f liars; the mean stands for no defence."""
    return {
        "mean": kn.Mean(),
        "NNM, trimmed mean": kn.NearestNeighborMixing(kn.TrimmedMean(f), f),
        "NNM, geometric median": kn.NearestNeighborMixing(kn.GeometricMedian(), f),
        "NNM, median": kn.NearestNeighborMixing(kn.Median(), f),
        "ARC, NNM, geometric median": kn.AdaptiveRobustClipping(kn.NearestNeighborMixing(kn.GeometricMedian(), f), f),
        "Multi-Krum": kn.MultiKrum(min(f, (CLIENTS - 3) // 2)),
        "bucketing, centred clipping": kn.Bucketing(kn.CenteredClipping(1.0, 3), 2),
    }


def learner() -> kn.TorchLearner:
    """What every client trains."""
    return kn.TorchLearner(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)),
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.2),
        batch_size=EXAMPLES // STEPS,
        metrics=(kn.Accuracy(),),
    )


def accuracy(data: kn.DataSet, cell: Cell, rounds: int, folder: Path) -> float:
    """What a cell comes to: test accuracy after the last round."""
    rule, attack, share, mix = cell
    liars = round(share * CLIENTS)
    reducer = rules(liars)[rule]
    strategy = kn.fedavg(stages=(kn.Momentum(0.9),), reducer=reducer)
    made = kn.Federation(learner(), strategy, rounds, kn.Evaluation(data.test, every=rounds, federated=False))
    population = data.split(kn.EqualDirichlet(mix), clients=CLIENTS, seed=0)
    engine = kn.Attacked(ATTACKS[attack], liars) if attack else kn.Attacked(Attack(), 0)
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        run = kn.simulate(made, population, runs=runs, progress=Quiet(), engine=engine)
    return run.metrics["accuracy"]


def cells(quick: bool) -> Iterator[Cell]:
    """Honest runs first, then every attack; the mean only at the smallest share."""
    shares, mixes = ((0.2,), (0.5,)) if quick else (SHARES, MIXES)
    attacks = list(ATTACKS)[:2] if quick else list(ATTACKS)
    names = list(rules(1))[:2] if quick else list(rules(1))
    for mix in mixes:
        yield "mean", "", 0.0, mix
    for mix, share in itertools.product(mixes, shares):
        for name, attack in itertools.product(names, attacks):
            if name != "mean" or share == shares[0]:
                yield name, attack, share, mix


def kept(path: Path) -> dict[Cell, float]:
    """Cells that are done."""
    found: dict[Cell, float] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.endswith("}"):  # the last may be half a line
            record = json.loads(line)
            rule, attack, share, mix = record["cell"]
            found[rule, attack, share, mix] = record["accuracy"]
    return found


def worst(found: Mapping[Cell, float]) -> list[tuple[str, float, float, float, str]]:
    """(rule, share, mix, points lost to honest clients without defence, by which attack), the worst attack of each."""
    lines = []
    for rule, share, mix in dict.fromkeys((cell[0], cell[2], cell[3]) for cell in found if cell[1]):
        same = {cell[1]: value for cell, value in found.items() if (cell[0], cell[2], cell[3]) == (rule, share, mix)}
        attack = min(same, key=lambda name: same[name])
        lines.append((rule, share, mix, 100 * (found["mean", "", 0.0, mix] - same[attack]), attack))
    return lines


def draw(path: Path, found: Mapping[Cell, float]) -> None:
    """The points that the worst attack costs, as a heat map."""
    lines = worst(found)
    names = [name for name in dict.fromkeys(line[0] for line in lines) if name != "mean"]
    columns = sorted({(line[2], line[1]) for line in lines}, key=lambda column: (-column[0], column[1]))
    lost = {(rule, (mix, share)): points for rule, share, mix, points, _ in lines}
    values = [[lost.get((name, column), float("nan")) for column in columns] for name in names]
    figure, axes = picture.blank(9, 3.6)
    axes.imshow(values, cmap="YlOrRd", vmin=0, vmax=40, aspect="auto")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(columns)), [f"{share:.0%}\nDir {mix:g}" for mix, share in columns])
    for (row, line), column in itertools.product(enumerate(values), range(len(columns))):
        axes.text(
            column,
            row,
            "–" if math.isnan(line[column]) else f"{line[column]:.1f}",
            ha="center",
            va="center",
            fontsize=8,
        )
    axes.set_title("Points of accuracy that the worst of eight attacks costs", fontsize=10)
    picture.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robust_grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("robust-grid"), help="where finished cells are kept")
    parser.add_argument("--quick", action="store_true", help="a corner, on random images, only to see that it works")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the heat map: a name ending in .svg or .png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "cells.jsonl"
    data = images(arguments.quick)
    found = kept(path)
    for cell in cells(arguments.quick):
        if cell not in found:
            found[cell] = accuracy(data, cell, 2 if arguments.quick else ROUNDS, arguments.folder)
            with path.open("a") as file:
                file.write("\n" + json.dumps({"cell": cell, "accuracy": found[cell]}))
    for rule, share, mix, points, attack in worst(found):
        print(f"{rule:28} {share:4.0%} liars  Dirichlet {mix:<4g} {points:6.1f} points lost, by {attack}")
    if arguments.draw is not None:
        draw(arguments.draw, found)


def images(quick: bool) -> kn.DataSet:
    """As many images as the clients hold, and all that there are to test on; or random ones."""
    if quick:
        rng = generator(0, "random")
        inputs, targets = torch.rand(2400, 1, 28, 28, generator=rng), torch.randint(10, (2400,), generator=rng)
        return kn.DataSet(kn.Samples(inputs[:2000], targets[:2000]), kn.Samples(inputs[2000:], targets[2000:]))
    data = kn.data.load("fashion-mnist")
    chosen = torch.randperm(len(data.train), generator=generator(0, "grid"))[: CLIENTS * EXAMPLES]
    inputs, targets = data.train.batch(chosen)
    return kn.DataSet(kn.Samples(inputs, targets), data.test)


if __name__ == "__main__":
    main()
