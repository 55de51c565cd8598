"""Two published tables on robust rules, computed anew with Koinon's rules and with byzfl's, side by side.

    python -m benchmarks.robust_tables [--folder DIR] [--quick]

Mimics against bucketing (Karimireddy et al., 2022), and the worst of three attacks against clipping, nearest-neighbour
mixing and the geometric median, by how alike the clients are (the benchmark of byzfl); on Fashion-MNIST, with an MLP
784-32-10. Both libraries get the same split, first weights, batches, attack and lots. A run that is done is kept in the
folder, so the study can be ended and gone on with; all of it takes an hour and a half on one core. `--quick` computes a corner
of it on random images: its figures mean nothing.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch

import koinon as kn
from benchmarks import byzfl
from benchmarks.parallel_sgd import SIZES, Liars, Rule, Training, accuracy
from koinon.aggregate.reducer import Contextual, Matrix, Reducer, Round, reduced
from koinon.core.rng import generator

TRAININGS: Mapping[str, Training] = {
    "mimics": Training(honest=20, steps=600, rate=0.01, batch=32),  # exp2.py of the paper's code; no momentum there
    "similarity": Training(honest=10, steps=300, rate=0.1, batch=25, momentum=0.9, decay=1e-4),  # byzfl's: 800 steps
}
SEEDS: Mapping[str, int] = {"mimics": 5, "similarity": 3}
MIMICS = 5
LIARS, SIMILARITIES = (1, 2, 3, 4), (0.0, 0.33, 1.0)
ATTACKS: Mapping[str, kn.attack.Attack] = {
    "sign flip": kn.attack.SignFlip(1.0),
    "optimal IPM": kn.attack.LineSearch(kn.attack.IPM(1.0)),
    "optimal ALIE": kn.attack.LineSearch(kn.attack.ALIE(1.0)),
}
PLAIN = ("Krum", "median", "geometric median", "centred clipping")
BUCKETED = tuple(f"bucketing, {name}" for name in PLAIN)
ADAPTIVE, STATIC = "adaptive clipping, NNM, geometric median", "static clipping, NNM, geometric median"
THREE = f"{ADAPTIVE} of 3 steps"
"""As many as byzfl's makes; Koinon's goes on until it stands still, unless told otherwise."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        table: "mimics" or "similarity".
        library: Whose rule.
        rule: Its name; "mean" stands for no defence, where nobody lies.
        attack: Its name; "" where nobody lies.
        liars: How many.
        similarity: Share of the images that is dealt at random; the rest is sorted by label.
        seed: All that is drawn follows from it.
    """

    table: str
    library: str
    rule: str
    attack: str
    liars: int
    similarity: float
    seed: int


def ours(reducer: Reducer, length: int) -> Rule:
    """A rule of Koinon's, with its memory."""
    memory = reducer.start(length) if isinstance(reducer, Contextual) else {}

    def rule(updates: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        nonlocal memory
        clients = tuple(str(number) for number in range(len(updates)))
        memory, result = reduced(reducer, memory, Matrix(updates, [1.0] * len(updates)), Round(1, clients, rng))
        return result

    return rule


def theirs(*makers: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> Rule:
    """Steps of byzfl's before a rule, and the rule."""
    steps = [make() for make in makers]

    def rule(updates: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        torch.set_rng_state(rng.get_state())  # byzfl draws from the global generator: the same lots as ours
        result = updates.clone()  # and clips in place
        for step in steps:
            result = step(result)
        return result

    return rule


def rules(f: int, length: int) -> Mapping[tuple[str, str], Callable[[], Rule]]:
    """(Library, rule) -> what makes it anew, for f liars. The paper's clipping norm is 10, in 3 steps; its RFA has 8."""
    whole, before = byzfl.rules(), byzfl.rules("aggregators.preaggregators")
    pairs = {
        "Krum": (kn.Krum(f), partial(whole.Krum, f)),
        "median": (kn.Median(), whole.Median),
        "geometric median": (kn.GeometricMedian(8), partial(whole.GeometricMedian, T=8)),
        "centred clipping": (kn.CenteredClipping(10.0, 3), partial(whole.CenteredClipping, L=3, tau=10.0)),
    }
    adaptive, three = (
        kn.AdaptiveRobustClipping(kn.NearestNeighborMixing(median, f), f)
        for median in (kn.GeometricMedian(), kn.GeometricMedian(3))
    )
    mixed = (partial(before.NNM, f), whole.GeometricMedian)
    made = {
        ("Koinon", "mean"): partial(ours, kn.Mean(), length),
        ("Koinon", ADAPTIVE): partial(ours, adaptive, length),
        ("Koinon", THREE): partial(ours, three, length),
        ("byzfl", ADAPTIVE): partial(theirs, partial(before.ARC, f), *mixed),
        ("byzfl", STATIC): partial(theirs, partial(before.Clipping, 2.0), *mixed),
    }
    for name, (our, their) in pairs.items():
        made["Koinon", name] = partial(ours, our, length)
        made["Koinon", f"bucketing, {name}"] = partial(ours, kn.Bucketing(our, 2), length)
        made["byzfl", name] = partial(theirs, their)
        made["byzfl", f"bucketing, {name}"] = partial(theirs, partial(before.Bucketing, 2), their)
    return made


def cells(quick: bool) -> Iterator[Cell]:
    """Seed by seed, so that every line of the tables has some runs early."""
    for seed in range(1 if quick else SEEDS["mimics"]):
        yield Cell("mimics", "Koinon", "mean", "", 0, 0.0, seed)
        for rule, library in itertools.product((*PLAIN, *BUCKETED)[: 1 if quick else None], ("Koinon", "byzfl")):
            yield Cell("mimics", library, rule, "mimic", MIMICS, 0.0, seed)
    similarities, liars = (SIMILARITIES[1:2], LIARS[:1]) if quick else (SIMILARITIES, LIARS)
    for seed in range(1 if quick else SEEDS["similarity"]):
        for similarity in similarities:
            yield Cell("similarity", "Koinon", "mean", "", 0, similarity, seed)
            for f, attack in itertools.product(liars, ATTACKS):
                yield Cell("similarity", "Koinon", ADAPTIVE, attack, f, similarity, seed)
                yield Cell("similarity", "Koinon", THREE, attack, f, similarity, seed)
                yield Cell("similarity", "byzfl", ADAPTIVE, attack, f, similarity, seed)
                yield Cell("similarity", "byzfl", STATIC, attack, f, similarity, seed)


def run(data: kn.DataSet, cell: Cell, quick: bool) -> float:
    """What a cell comes to."""
    training = TRAININGS[cell.table]
    if quick:
        training = dataclasses.replace(training, steps=2)
    faithful = cell.attack == "mimic"
    attack = kn.attack.Mimic() if faithful else ATTACKS.get(cell.attack, kn.attack.Attack())
    rule = rules(cell.liars, sum(SIZES))[cell.library, cell.rule]()
    return accuracy(data, training, cell.similarity, Liars(cell.liars, attack, faithful), rule, cell.seed)


def kept(path: Path) -> dict[Cell, float]:
    """Runs that are done."""
    found: dict[Cell, float] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.endswith("}"):  # the last may be half a line
            record = json.loads(line)
            found[Cell(*record["cell"])] = record["accuracy"]
    return found


@dataclass(frozen=True)
class Summary:
    """Accuracies of the same run with different seeds, in per cent.

    Attributes:
        center: Their mean.
        spread: Their standard deviation, of a sample; NaN of one.
        seeds: How many.
    """

    center: float
    spread: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.center:.1f} ± {self.spread:.1f}" if self.seeds > 1 else f"{self.center:.1f}"


def summary(found: Mapping[Cell, float], table: str, library: str, rule: str, where: tuple[str, int, float]) -> Summary:
    """Over the seeds that are done; `where` is attack, liars, similarity."""
    same = [
        100 * value
        for cell, value in found.items()
        if (cell.table, cell.library, cell.rule, (cell.attack, cell.liars, cell.similarity))
        == (table, library, rule, where)
    ]
    center = mean(same) if same else float("nan")
    return Summary(center, stdev(same) if len(same) > 1 else float("nan"), len(same))


def verdict(our: Summary, their: Summary) -> str:
    """Whether ours is below by no more than one standard deviation: the root of the mean of both variances."""
    if our.seeds < 2 or their.seeds < 2:
        return "–"
    allowed = ((our.spread**2 + their.spread**2) / 2) ** 0.5
    return "held" if our.center >= their.center - allowed else "missed"


def mimics(found: Mapping[Cell, float]) -> str:
    """The first table."""
    lines = ["| rule | Koinon | byzfl | not below |", "|---|---|---|---|"]
    there = {cell.rule for cell in found if cell.table == "mimics" and cell.attack}
    for rule in (*PLAIN, *BUCKETED):
        if rule in there:
            our, their = (
                summary(found, "mimics", library, rule, ("mimic", MIMICS, 0.0)) for library in ("Koinon", "byzfl")
            )
            lines.append(f"| {rule} | {our} | {their} | {verdict(our, their)} |")
    lines.append(f"| mean, nobody lies | {summary(found, 'mimics', 'Koinon', 'mean', ('', 0, 0.0))} | | |")
    return "\n".join(lines)


def worst(found: Mapping[Cell, float], library: str, rule: str, f: int, similarity: float) -> tuple[Summary, str]:
    """Of the attacks that were run, that which leaves least on average, and its name."""
    of_each = {name: summary(found, "similarity", library, rule, (name, f, similarity)) for name in ATTACKS}
    known = [name for name in ATTACKS if of_each[name].seeds] or list(ATTACKS)
    name = min(known, key=lambda attack: of_each[attack].center)
    return of_each[name], name


def similarity(found: Mapping[Cell, float]) -> str:
    """The second table."""
    lines = [
        "| similarity | liars | Koinon | not below | Koinon, 3 steps | not below | byzfl | byzfl, static clipping |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for gamma in SIMILARITIES:
        done = {cell.liars for cell in found if (cell.table, cell.similarity) == ("similarity", gamma)}
        if 0 in done:
            lines.append(
                f"| {gamma:g} | 0, mean | {summary(found, 'similarity', 'Koinon', 'mean', ('', 0, gamma))} | | | | | |"
            )
        for f in sorted(done - {0}):
            their, attack = worst(found, "byzfl", ADAPTIVE, f, gamma)
            cells = [f"{gamma:g}", str(f)]
            for rule in (ADAPTIVE, THREE):
                our, our_attack = worst(found, "Koinon", rule, f, gamma)
                cells += [f"{our} ({our_attack})", verdict(our, their)]
            static, static_attack = worst(found, "byzfl", STATIC, f, gamma)
            lines.append(f"| {' | '.join([*cells, f'{their} ({attack})', f'{static} ({static_attack})'])} |")
    return "\n".join(lines)


def images(quick: bool) -> kn.DataSet:
    """Fashion-MNIST, or random images."""
    if not quick:
        return kn.data.load("fashion-mnist")
    rng = generator(0, "random")
    inputs, targets = torch.rand(1200, 1, 28, 28, generator=rng), torch.randint(10, (1200,), generator=rng)
    return kn.DataSet(kn.Samples(inputs[:1000], targets[:1000]), kn.Samples(inputs[1000:], targets[1000:]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robust_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("robust-tables"), help="where finished runs are kept")
    parser.add_argument("--quick", action="store_true", help="a corner, on random images, only to see that it works")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "cells.jsonl"
    data, found = images(arguments.quick), kept(path)
    for cell in cells(arguments.quick):
        if cell not in found:
            found[cell] = run(data, cell, arguments.quick)
            with path.open("a") as file:
                file.write("\n" + json.dumps({"cell": dataclasses.astuple(cell), "accuracy": found[cell]}))
    print(mimics(found), similarity(found), sep="\n\n")


if __name__ == "__main__":
    main()
