"""What privacy costs on Fashion-MNIST: accuracy on the test images, and the guarantee it was reached under.

    python -m benchmarks.private_accuracy [records] [clients] [turns] [--quick] [--folder DIR] [--draw FILE]

`records`: one client holds all 60,000 images, and DP-SGD protects each of them. `clients`: 1,000 clients hold 60 images
each, dealt at random, and the server's noise protects all that a client holds. `turns`: the same clients take part in
turn, with independent and with correlated noise. It takes one thread and the better part of an hour. `--draw` draws
accuracy over epsilon. `--quick` only shows that it works, on random images: its figures mean nothing.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import koinon as kn
from benchmarks.scattering import CHANNELS, PLACES, normalised
from koinon.data.dataset import Dataset
from koinon.durable.spending import guarantees
from koinon.privacy.accountant import Guarantee
from koinon.server.sampling import Sampler
from koinon.update.stage import Stage
from koinon.view.study import draw

CLASSES = 10
MOMENTUM = 0.9

EPSILON, DELTA, CLIP_NORM = 3.0, 1e-5, 0.1
"""Of what a record is promised, and how its gradients are clipped."""

EPSILONS, CLIENTS_DELTA, CLIENTS_CLIP_NORM = (1.0, 2.0, 4.0, 8.0), 1e-4, 0.2
"""Of what a client is promised, and how its updates are clipped."""

RATE, ROUNDS = 0.1, 200
"""A client's chance to take part in a round, and how many there are."""

TURNS, SEPARATION = 100, 10
"""Rounds where clients take turns, and rounds from a client's turn to its next."""


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        what: What was trained, and how far.
        accuracy: On the test images.
        guarantee: All that was spent until then; None without noise.
        seconds: Of training and evaluation until then.
    """

    what: str
    accuracy: float
    guarantee: Guarantee | None
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """A model, and how DP-SGD trains it.

    Sample sizes, rates and the clip are those of Tramèr and Boneh, "Differentially private learning needs better features
    (or much more data)" (2021), who reach 86.0 % with the network and 89.7 % with the linear model in 40 epochs.

    Attributes:
        name: What is trained.
        model: Makes it.
        features: What it sees of images: of each image alone, or one record would show in the gradients of others.
        sample: Records expected in a step.
        rate: Of SGD with momentum.
        held: Records whose gradients are held at a time.
    """

    name: str
    model: Callable[[], nn.Module]
    features: Callable[[torch.Tensor], torch.Tensor]
    sample: int
    rate: float
    held: int


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=2), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * PLACES**2, CLASSES))


RECIPES = (
    Recipe("linear on scattering", linear, normalised, sample=8192, rate=16.0, held=64),
    Recipe("network on pixels", network, lambda images: images, sample=2048, rate=4.0, held=512),
)


def records(quick: bool, runs: Path) -> Iterator[Result]:
    """All records with one client, each of them protected: accuracy and what was spent, round by round."""
    data = _random() if quick else kn.data.load("fashion-mnist")
    # Each round starts momentum anew, so rounds are long.
    rounds, epochs = (2, 1) if quick else (8, 5)
    for recipe in RECIPES:
        train, test = _seen(data.train, recipe.features), _seen(data.test, recipe.features)
        share = min(recipe.sample / len(train), 0.5)
        learner = _private_learner(recipe, share, rounds, epochs)
        evaluation = kn.Evaluation(test, federated=False)
        federation = kn.Federation(learner, kn.fedavg(stages=()), rounds, evaluation, kn.Budget(EPSILON, DELTA))
        run = kn.simulate(federation, kn.Population.of([train]), runs=runs)
        yield from _course(run, recipe.name, "epoch", epochs)


def clients(quick: bool, runs: Path) -> Iterator[Result]:
    """Records dealt to many clients, each client protected: accuracy at the end, for each epsilon and without noise."""
    data = _random() if quick else kn.data.load("fashion-mnist")
    train, test = _seen(data.train, _pooled), _seen(data.test, _pooled)
    population = kn.DataSet(train).split(kn.IID(), clients=100 if quick else 1000)
    rounds, epsilons = (2, EPSILONS[-1:]) if quick else (ROUNDS, EPSILONS)
    for epsilon in epsilons:
        noise_multiplier = kn.calibrate(epsilon, CLIENTS_DELTA, rounds=rounds, sample_rate=RATE).noise_multiplier
        noise = kn.GaussianNoise(noise_multiplier, cohort=RATE * len(population))
        run = kn.simulate(
            _by_clients(test, rounds, (kn.Clip(CLIENTS_CLIP_NORM), noise), kn.Budget(epsilon, CLIENTS_DELTA)),
            population,
            runs=runs,
        )
        yield from _course(run, f"noise multiplier {noise_multiplier:.2f}", "round")
    run = kn.simulate(_by_clients(test, rounds, (kn.Clip(CLIENTS_CLIP_NORM),), None), population, runs=runs)
    yield from _course(run, "clipped only", "round")


def turns(quick: bool, runs: Path) -> Iterator[Result]:
    """The same clients in turn: accuracy at the end with noise that is independent from round to round, and correlated."""
    data = _random() if quick else kn.data.load("fashion-mnist")
    train, test = _seen(data.train, _pooled), _seen(data.test, _pooled)
    population = kn.DataSet(train).split(kn.IID(), clients=100 if quick else 1000)
    sample = kn.RoundRobin(len(population) // SEPARATION)
    rounds, epsilons = (SEPARATION, EPSILONS[-1:]) if quick else (TURNS, EPSILONS)
    for epsilon in epsilons:
        independent, once = (
            kn.calibrate(
                epsilon, CLIENTS_DELTA, rounds=each, sampling="none", neighbours="replace-one"
            ).noise_multiplier
            for each in (rounds, 1)
        )
        budget = kn.Budget(epsilon, CLIENTS_DELTA, "replace-one")
        kinds: tuple[tuple[str, Stage], ...] = (
            ("independent", kn.GaussianNoise(independent)),
            ("correlated", kn.CorrelatedNoise(once, rounds, SEPARATION)),
        )
        for kind, noise in kinds:
            made = _by_clients(test, rounds, (kn.Clip(CLIENTS_CLIP_NORM), noise), budget, sample)
            yield from _course(kn.simulate(made, population, runs=runs), f"{kind} noise", "round")


def _by_clients(
    test: kn.Samples,
    rounds: int,
    stages: tuple[Stage, ...],
    budget: kn.Budget | None,
    sample: Sampler = kn.Poisson(RATE),
) -> kn.Federation:
    """A linear model on averaged features: the noise's norm grows with the root of the parameters, an update's does not."""
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    model = functools.partial(nn.Linear, test.inputs.shape[1], CLASSES)
    learner = kn.TorchLearner(model, nn.CrossEntropyLoss(), sgd, batch_size=20, metrics=(kn.Accuracy(),))
    server = functools.partial(torch.optim.SGD, lr=0.5, momentum=MOMENTUM)
    strategy = kn.fedavg(sample=sample, stages=stages, server=server)
    return kn.Federation(learner, strategy, rounds, kn.Evaluation(test, every=rounds, federated=False), budget)


def _pooled(images: torch.Tensor) -> torch.Tensor:
    """Scattering features at 3 x 3 places; float32 `[n, 729]`."""
    return functional.avg_pool2d(normalised(images), 2).flatten(1)


def _private_learner(recipe: Recipe, share: float, rounds: int, epochs: int) -> kn.TorchLearner:
    """A learner whose noise spends the budget in so many rounds."""
    steps = rounds * kn.DPSGD(1.0, CLIP_NORM, share).steps(epochs)
    noise_multiplier = kn.calibrate(EPSILON, DELTA, rounds=steps, sample_rate=share).noise_multiplier
    return kn.TorchLearner(
        recipe.model,
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=recipe.rate, momentum=MOMENTUM),
        epochs=epochs,
        batch_size=recipe.held,
        metrics=(kn.Accuracy(),),
        dp=kn.DPSGD(noise_multiplier, CLIP_NORM, share),
    )


def _course(run: kn.Run, name: str, step: str, steps: int = 1) -> Iterator[Result]:
    """Every evaluation of a run, with all that was spent until then; a round has so many steps."""
    delta = run.info.delta
    for done in range(1, len(run.history) + 1):
        history = run.history[:done]
        if history[-1].metrics:
            releases = (release for record in history for release in record.releases)
            guarantee = next(iter(guarantees(releases, delta).values()), None) if delta is not None else None
            seconds = sum(record.seconds for record in history)
            yield Result(f"{name}, {step} {steps * done}", history[-1].metrics["accuracy"], guarantee, seconds)


def _seen(part: Dataset | None, features: Callable[[torch.Tensor], torch.Tensor]) -> kn.Samples:
    assert part is not None
    inputs, targets = part.batch(torch.arange(len(part)))
    return kn.Samples(features(inputs), targets)


def _random() -> kn.DataSet:
    """400 images of noise to train on, 100 to test on."""
    rng = torch.Generator().manual_seed(0)
    inputs, targets = torch.rand(500, 1, 28, 28, generator=rng), torch.randint(CLASSES, (500,), generator=rng)
    return kn.DataSet(kn.Samples(inputs[:400], targets[:400]), kn.Samples(inputs[400:], targets[400:]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.private_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measures = {"records": records, "clients": clients, "turns": turns}
    parser.add_argument("what", nargs="*", help=f"of {', '.join(measures)}; all by default")
    parser.add_argument(
        "--draw", type=Path, metavar="FILE", help="draw what clients cost: a name ending in .svg or .png"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest setting, only to see that it works")
    parser.add_argument("--folder", type=Path, help="for the runs; a temporary folder by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[Result]] = {}
    if unknown := set(arguments.what) - set(measures):
        parser.error(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(measures)}")
    for name in arguments.what or measures:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="koinon-") as folder:
            found[name] = list(measures[name](arguments.quick, Path(folder)))
        print(table(name, found[name]), flush=True)
    if arguments.draw is not None:
        draw_clients(arguments.draw, found.get("clients", []), found.get("turns", []))


def draw_clients(path: Path, sampled: Sequence[Result], in_turn: Sequence[Result]) -> None:
    """Accuracy over epsilon where each client is protected."""
    free = next((result.accuracy for result in sampled if result.guarantee is None), None)
    curves = [
        ("sampled in secret", sampled),
        ("in turn, correlated noise", [result for result in in_turn if result.what.startswith("correlated")]),
        ("in turn, independent noise", [result for result in in_turn if result.what.startswith("independent")]),
    ]
    drawn = [
        (name, [(round(each.guarantee.epsilon, 1), each.accuracy) for each in results if each.guarantee is not None])
        for name, results in curves
    ]
    draw(path, "test accuracy", [curve for curve in drawn if curve[1]], level=free)


def table(name: str, results: Sequence[Result]) -> str:
    """The results, a line each."""
    wide = max(len(result.what) for result in results)
    lines = [
        f"  {result.what:{wide}}  {100 * result.accuracy:6.2f} %  {result.seconds:7.0f} s  "
        f"{result.guarantee or 'without noise'}"
        for result in results
    ]
    return "\n".join((f"\n{name}", *lines))


if __name__ == "__main__":
    main()
