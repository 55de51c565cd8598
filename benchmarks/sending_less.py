"""Bytes to 85 % accuracy on Fashion-MNIST with ten sites that all take part in every round: sending less often.

    python -m benchmarks.sending_less [NAME ...] [--folder DIR] [--quick]

The network and the sites are those of `slow_network`. Each way takes some minutes on one thread and can be stopped; it goes on
where it was. `--quick` makes two rounds at two sites: its figures mean nothing.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

import koinon as kn
from benchmarks.apps import fashion
from benchmarks.uplink import Course, course_of, table


@dataclasses.dataclass(frozen=True)
class Way:
    """How sites train and send.

    Attributes:
        strategy: From updates to the next model.
        epochs: Passes over a site's data in a round.
        rounds: As many as make 60 passes over the data.
    """

    strategy: kn.Strategy
    epochs: int = 1
    rounds: int = fashion.ROUNDS


WAYS: Mapping[str, Way] = {
    "float32": Way(kn.fedavg()),
    "`Lazy(Float32())`": Way(kn.fedavg(codec=kn.Lazy(kn.Float32()))),
    "`Layers(2)`": Way(kn.fedavg(codec=kn.Layers(2))),
    "`ErrorFeedback(Layers(2))`": Way(kn.fedavg(codec=kn.ErrorFeedback(kn.Layers(2)))),
    "five epochs": Way(kn.fedavg(), epochs=5, rounds=12),
    "`diloco`, five epochs": Way(kn.diloco(), epochs=5, rounds=12),
}


def course(name: str, folder: Path, quick: bool) -> Course:
    """Run a way, or go on with its run."""
    way, base = WAYS[name], fashion.plain
    assert isinstance(base.learner, kn.TorchLearner)
    learner = dataclasses.replace(base.learner, epochs=way.epochs)
    evaluation = dataclasses.replace(base.evaluation, every=1)
    federation = kn.Federation(learner, way.strategy, 2 if quick else way.rounds, evaluation)
    return course_of(name, federation, fashion.population(2 if quick else fashion.SITES), folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sending_less",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WAYS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="the smallest setting, only to see that it works")
    parser.add_argument("--folder", type=Path, default=Path("runs/sending_less"), help="%(default)s by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(WAYS):
        parser.error(f"no way is called {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    print(table([course(name, arguments.folder, arguments.quick) for name in arguments.names or WAYS]))


if __name__ == "__main__":
    main()
