"""One data set -> many clients: who gets which examples.

A partition answers with one number per example, its owner. So parts never overlap and nothing is left over,
whatever the partition.
"""

import heapq
import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from koinon.core.errors import AdmissionError
from koinon.core.rng import generator, integer
from koinon.data.dataset import DataSet, Dataset, Samples

Integers: TypeAlias = npt.NDArray[np.int64]

_READ_AT_ONCE = 1024


class Partition(Protocol):
    """A way to draw parts; `DataSet.split` takes anything that has `owners`."""

    def owners(self, examples: Dataset, clients: int, rng: torch.Generator) -> torch.Tensor:
        """The client of every example: int64 `[n]`, each in `[0, clients)`; every draw comes from `rng`.

        Raises:
            AdmissionError: if these examples cannot be divided so.
        """


@dataclass(frozen=True)
class IID:
    """Every client gets the same mixture: examples are shuffled and dealt; sizes differ by at most one."""

    def owners(self, examples: Dataset, clients: int, rng: torch.Generator) -> torch.Tensor:
        """The client of every example, int64 `[n]`."""
        _admit(self, len(examples), clients, 1)
        owners = torch.empty(len(examples), dtype=torch.int64)
        owners[torch.randperm(len(examples), generator=rng)] = torch.arange(len(examples)) % clients
        return owners


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: each class is shared out by proportions drawn from Dir(alpha); sizes differ as well.

    A client that already holds its equal share n / clients gets nothing of the classes that follow. Where the
    published code draws again until every client has enough, here those with too few take random examples
    from the largest, so that `min_examples` is met for certain.

    Source: Li et al., "Federated learning on non-IID data silos" (2022), p_k ~ Dir(alpha), after Yurochkin
    et al., "Bayesian nonparametric federated learning" (2019).

    Attributes:
        alpha: Concentration, > 0: 0.1 gives clients a class or two, 100 is nearly IID.
        min_examples: The least that any client gets, >= 1.
    """

    alpha: float
    min_examples: int = 1

    def __post_init__(self) -> None:
        _admit_alpha(self, self.alpha)
        _admit_count(self, "min_examples", self.min_examples)

    def owners(self, examples: Dataset, clients: int, rng: torch.Generator) -> torch.Tensor:
        """The client of every example, int64 `[n]`; needs class targets."""
        labels, classes = class_labels(examples)
        _admit(self, len(labels), clients, self.min_examples)
        draws = np.random.default_rng(integer(rng))
        owners = np.empty(len(labels), dtype=np.int64)
        sizes = np.zeros(clients, dtype=np.int64)
        for label in range(classes):
            members = draws.permutation(np.flatnonzero(labels == label))
            open_to = sizes < len(labels) / clients
            shares = draws.dirichlet(np.full(clients, self.alpha)) * open_to
            shares = shares if shares.sum() > 0 else open_to.astype(float)  # a tiny alpha can miss all who are open
            owners[members] = _deal(shares, len(members))
            sizes += np.bincount(owners[members], minlength=clients)
        _top_up(owners, clients, self.min_examples, draws)
        return torch.from_numpy(owners)


@dataclass(frozen=True)
class EqualDirichlet:
    """Label skew with equal sizes: each client draws its own mixture of classes from Dir(alpha).

    A class that is used up leaves the mixture of the clients that follow; sizes differ by at most one.

    Source: Hsu et al., "Measuring the effects of non-identical data distribution" (2019), with alpha per class
    as in Acar et al., "Federated learning based on dynamic regularization" (2021).

    Attributes:
        alpha: Concentration, > 0: 0.1 gives clients a class or two, 100 is nearly IID.
    """

    alpha: float

    def __post_init__(self) -> None:
        _admit_alpha(self, self.alpha)

    def owners(self, examples: Dataset, clients: int, rng: torch.Generator) -> torch.Tensor:
        """The client of every example, int64 `[n]`; needs class targets."""
        labels, classes = class_labels(examples)
        _admit(self, len(labels), clients, 1)
        draws = np.random.default_rng(integer(rng))
        members = [draws.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
        left = np.array([len(of_class) for of_class in members])
        owners = np.empty(len(labels), dtype=np.int64)
        for client in range(clients):
            size = len(labels) // clients + (client < len(labels) % clients)
            taken = _take(draws.dirichlet(np.full(classes, self.alpha)), size, left, draws)
            for label in np.flatnonzero(taken):
                owners[members[label][left[label] - taken[label] : left[label]]] = client
            left -= taken
        return torch.from_numpy(owners)


@dataclass(frozen=True)
class Shards:
    """Each client holds exactly `classes_per_client` classes; a class is shared equally among its holders.

    The first class of client i is i modulo the number of classes, the others are drawn; with fewer clients
    than classes, classes are dealt in turn first, so that each has a holder.

    Source: Li et al., "Federated learning on non-IID data silos" (2022), #C = k.

    Attributes:
        classes_per_client: k, >= 1.
    """

    classes_per_client: int

    def __post_init__(self) -> None:
        _admit_count(self, "classes_per_client", self.classes_per_client)

    def owners(self, examples: Dataset, clients: int, rng: torch.Generator) -> torch.Tensor:
        """The client of every example, int64 `[n]`; needs class targets."""
        labels, classes = class_labels(examples)
        if not self.classes_per_client <= classes <= clients * self.classes_per_client:
            raise AdmissionError(
                f"{self} cannot divide {classes} classes among {clients} clients; classes_per_client must be "
                f"between {math.ceil(classes / clients)} and {classes}"
            )
        _admit(self, len(labels), clients, self.classes_per_client)
        draws = np.random.default_rng(integer(rng))
        holders = self._holders(classes, clients, draws)
        owners = np.empty(len(labels), dtype=np.int64)
        for label, of_class in enumerate(holders):
            members = draws.permutation(np.flatnonzero(labels == label))
            if len(members) < len(of_class):
                raise AdmissionError(
                    f"{self} gives one class of only {len(members)} examples to {len(of_class)} clients; "
                    "use fewer clients or classes per client"
                )
            owners[members] = np.resize(of_class, len(members))
        return torch.from_numpy(owners)

    def _holders(self, classes: int, clients: int, draws: np.random.Generator) -> list[list[int]]:
        """For each class, the clients that hold it."""
        holders: list[list[int]] = [[] for _ in range(classes)]
        for client in range(clients):
            dealt = [client % classes, *range(client + clients, classes, clients)][: self.classes_per_client]
            others = draws.permutation(np.setdiff1d(np.arange(classes), dealt))
            for label in (*dealt, *others[: self.classes_per_client - len(dealt)]):
                holders[label].append(client)
        return holders


@dataclass(frozen=True)
class QuantitySkew:
    """Every client gets the same mixture, but sizes are drawn from Dir(alpha).

    Source: Li et al., "Federated learning on non-IID data silos" (2022), q ~ Dir(alpha).

    Attributes:
        alpha: Concentration, > 0: 0.5 gives some clients a hundred times what others get, 100 is nearly equal.
        min_examples: The least that any client gets, >= 1.
    """

    alpha: float
    min_examples: int = 1

    def __post_init__(self) -> None:
        _admit_alpha(self, self.alpha)
        _admit_count(self, "min_examples", self.min_examples)

    def owners(self, examples: Dataset, clients: int, rng: torch.Generator) -> torch.Tensor:
        """The client of every example, int64 `[n]`."""
        _admit(self, len(examples), clients, self.min_examples)
        draws = np.random.default_rng(integer(rng))
        reserved = np.repeat(np.arange(clients), self.min_examples)
        rest = _deal(draws.dirichlet(np.full(clients, self.alpha)), len(examples) - len(reserved))
        return torch.from_numpy(draws.permutation(np.concatenate((reserved, rest))))


@dataclass(frozen=True)
class Natural:
    """One client per group of the data, e.g. per hospital, with its own train and test part; nothing is drawn."""


def hold_out(samples: Samples, share: float, seed: int) -> DataSet:
    """A train and a test part; stratified by class where targets are classes, each group on its own.

    Args:
        samples: All examples.
        share: Of the test part, in [0, 1): each class gives its share rounded up or down.
        seed: Of the draw. A group's draw depends on its name alone, not on which others are there.
    """
    names = samples.groups or ("",) * len(samples)
    strata = samples.targets.numpy() if _are_classes(samples.targets) else np.zeros(len(samples), dtype=np.int64)
    held = np.zeros(len(samples), dtype=bool)
    groups = np.array(names, dtype=object)
    for name in sorted(set(names)):
        rng = np.random.default_rng(integer(generator(seed, "hold out", client=name)))
        order = rng.permutation(np.flatnonzero(groups == name))
        order = order[np.argsort(strata[order], kind="stable")]
        marks = np.floor(np.arange(len(order) + 1) * share + rng.random())  # every 1/share-th, class after class
        held[order] = np.diff(marks) > 0
    train, test = (samples.subset(torch.from_numpy(np.flatnonzero(part))) for part in (~held, held))
    return DataSet(train, test if len(test) else None)


def class_labels(examples: Dataset) -> tuple[Integers, int]:
    """Every example's class as a number from 0 on, and how many classes there are.

    Raises:
        AdmissionError: if the targets are not classes, int64 `[n]`.
    """
    present, labels = np.unique(class_targets(examples), return_inverse=True)
    return labels.astype(np.int64), len(present)


def class_targets(examples: Dataset) -> Integers:
    """Every example's class, as it is called.

    Raises:
        AdmissionError: if the targets are not classes, int64 `[n]`.
    """
    if isinstance(examples, Samples):
        targets = examples.targets
    else:
        starts = range(0, len(examples), _READ_AT_ONCE)
        parts = [torch.arange(start, min(start + _READ_AT_ONCE, len(examples))) for start in starts]
        targets = torch.cat([torch.as_tensor(examples.batch(part)[1]) for part in parts])
    if not _are_classes(targets):
        kind = str(targets.dtype).removeprefix("torch.")
        shape = ", ".join(("n", *map(str, targets.shape[1:])))
        raise AdmissionError(
            f"label skew needs one whole number per target, its class; these are {kind} [{shape}]: "
            "use IID() or QuantitySkew(alpha)"
        )
    classes: Integers = targets.numpy()
    return classes


def _are_classes(targets: torch.Tensor) -> bool:
    return targets.ndim == 1 and not targets.is_floating_point() and not targets.is_complex()


def _deal(shares: npt.NDArray[np.float64], count: int) -> Integers:
    """The owners of `count` cards, in order: owner i gets the fraction `shares[i]` of them, rounded."""
    edges = np.cumsum(shares / shares.sum())
    owners: Integers = np.searchsorted(edges, (np.arange(count) + 0.5) / count)
    last: int = np.flatnonzero(shares)[-1]
    return owners.clip(max=last)  # the last edge may round to below 1


def _take(mixture: npt.NDArray[np.float64], size: int, left: Integers, draws: np.random.Generator) -> Integers:
    """How many of each class one client takes of what is `left`: `size` in all, drawn by `mixture`."""
    taken: Integers = np.zeros_like(left)
    while (need := size - taken.sum()) > 0:
        weights = mixture * (taken < left)
        if weights.sum() == 0:
            weights = (left - taken).astype(float)
        taken = np.minimum(taken + draws.multinomial(need, weights / weights.sum()), left)
    return taken


def _top_up(owners: Integers, clients: int, least: int, draws: np.random.Generator) -> None:
    """Hand random examples of the largest clients, one by one, to those below `least`; changes `owners`."""
    sizes = np.bincount(owners, minlength=clients)
    if sizes.min() >= least:
        return
    shuffled = draws.permutation(len(owners))
    by_client = np.split(shuffled[np.argsort(owners[shuffled], kind="stable")], np.cumsum(sizes)[:-1])
    largest = [(-int(size), client) for client, size in enumerate(sizes)]
    heapq.heapify(largest)
    for needy in np.flatnonzero(sizes < least):
        for _ in range(least - sizes[needy]):
            size, donor = largest[0]
            heapq.heapreplace(largest, (size + 1, donor))
            owners[by_client[donor][-size - 1]] = needy


def _admit(partition: object, examples: int, clients: int, least: int) -> None:
    if clients * least > examples:
        raise AdmissionError(
            f"{partition} cannot give {clients} clients at least {least} of {examples} examples each; "
            f"at most {examples // least} clients"
        )


def _admit_alpha(partition: object, alpha: float) -> None:
    if not 1e-6 <= alpha <= 1e6:
        raise AdmissionError(f"{partition}: alpha must be between 1e-6 (all skew) and 1e6 (none); 0.1 to 10 is usual")


def _admit_count(partition: object, name: str, count: int) -> None:
    if not (isinstance(count, int) and count >= 1):
        raise AdmissionError(f"{partition}: {name} must be a whole number, at least 1")
