"""Whom `kn.Quarantine` suspects: AUROC of its suspicion, honest clients that it left out, and rounds until liars were.

    python -m benchmarks.detection [--quick]

The clients and attacks of `benchmarks.robust_grid`, 4 liars of 20, 12 rounds. `--quick` takes a corner, on random images:
its figures mean nothing.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from sklearn.metrics import roc_auc_score

import koinon as kn
from benchmarks import robust_grid
from koinon.attack.attack import Attack
from koinon.core.types import ClientId
from koinon.view.progress import Quiet

LIARS, ROUNDS = 4, 12


@dataclass(frozen=True)
class Detected:
    """What came of one attack.

    Attributes:
        auroc: Of the suspicion after the last round; NaN without liars.
        honest_out: Share of honest clients' rounds in which they were left out.
        liars_out: Liars that were left out in the end.
        delay: Mean of the first rounds in which liars were left out; those that never were count as one round too late.
    """

    auroc: float
    honest_out: float
    liars_out: int
    delay: float


def detected(data: kn.DataSet, attack: Attack, liars: int, mix: float, rounds: int, folder: Path) -> Detected:
    """Run one federation under attack, and look at what was suspected."""
    f = LIARS
    reducer = kn.Quarantine(kn.NearestNeighborMixing(kn.TrimmedMean(f), f))
    evaluation = kn.Evaluation(data.test, every=rounds, federated=False)
    strategy = kn.fedavg(stages=(kn.Momentum(0.9),), reducer=reducer)
    made = kn.Federation(robust_grid.learner(), strategy, rounds, evaluation)
    population = data.split(kn.EqualDirichlet(mix), clients=robust_grid.CLIENTS, seed=0)
    lying = set(population.ids[robust_grid.CLIENTS - liars :])
    run = kn.simulate(made, population, runs=folder, progress=Quiet(), engine=kn.Attacked(attack, liars))
    last = run.history[-1].suspicion
    firsts = [_first(run, client) for client in lying]
    honest = [
        bool(each["left_out"]) for one in run.history for client, each in one.suspicion.items() if client not in lying
    ]
    return Detected(
        auroc=roc_auc_score([c in lying for c in last], [each["suspicion"] for each in last.values()])
        if lying
        else float("nan"),
        honest_out=mean(honest),
        liars_out=sum(bool(last[client]["left_out"]) for client in lying),
        delay=mean(firsts) if firsts else float("nan"),
    )


def _first(run: kn.Run, client: ClientId) -> int:
    rounds = (record.round for record in run.history if record.suspicion.get(client, {}).get("left_out"))
    return next(rounds, len(run.history) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a corner, on random images, only to see that it works")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    data = robust_grid.images(quick)
    attacks: dict[str, tuple[Attack, int]] = {"nobody": (Attack(), 0)}
    attacks |= {name: (attack, LIARS) for name, attack in robust_grid.ATTACKS.items()}
    if quick:
        attacks = dict(list(attacks.items())[:2])
    print(
        "| Dirichlet | attack | AUROC | liars left out | after round | honest rounds left out |\n|---|---|---|---|---|---|"
    )
    for mix in sorted(robust_grid.MIXES)[: 1 if quick else None]:
        for name, (attack, liars) in attacks.items():
            with tempfile.TemporaryDirectory() as folder:
                found = detected(data, attack, liars, mix, 3 if quick else ROUNDS, Path(folder))
            print(
                f"| {mix:g} | {name} | {found.auroc:.2f} | {found.liars_out} of {liars} | {found.delay:.1f} "
                f"| {100 * found.honest_out:.1f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
