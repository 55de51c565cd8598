"""What one owner holds: examples to train on and, perhaps, examples to test on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch.utils.data import default_collate

from koinon.core.errors import AdmissionError

if TYPE_CHECKING:
    from koinon.data.partition import Natural, Partition
    from koinon.data.population import Population

Batch: TypeAlias = tuple[Any, Any]
"""Inputs and targets; tensors whose first dimension counts the examples."""


@runtime_checkable
class Dataset(Protocol):
    """Examples that can be counted and fetched in any order."""

    def __len__(self) -> int:
        """How many examples there are."""

    def batch(self, indices: torch.Tensor) -> Batch:
        """The examples at int64 `indices [b]`, in that order."""


@dataclass(frozen=True, eq=False)
class Samples:
    """One client's examples as tensors.

    Attributes:
        inputs: `[n, ...]`.
        targets: `[n]` or `[n, ...]`.
        groups: Whose each example is, e.g. its hospital; one name per example, or None when nothing says so.

    Raises:
        AdmissionError: if they do not count the same number of examples.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise AdmissionError(
                f"{len(self.inputs)} inputs but {len(self.targets)} targets; give one target per input"
            )
        if self.groups is not None and len(self.groups) != len(self.targets):
            raise AdmissionError(
                f"{len(self.groups)} groups for {len(self.targets)} examples; name one group per example"
            )

    def __reduce__(self) -> tuple[type["Samples"], tuple[torch.Tensor, torch.Tensor, tuple[str, ...] | None]]:
        """In another process there are these examples alone, and not all that their tensors are views of."""
        return Samples, (_alone(self.inputs), _alone(self.targets), self.groups)

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: torch.Tensor) -> Batch:
        """The examples at int64 `indices [b]`, in that order."""
        return self.inputs[indices], self.targets[indices]

    def subset(self, indices: torch.Tensor | Sequence[int]) -> "Samples":
        """The examples at `indices`, copied."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        groups = None if self.groups is None else tuple(self.groups[index] for index in chosen.tolist())
        return Samples(self.inputs[chosen], self.targets[chosen], groups)


@dataclass(frozen=True, eq=False)
class TorchDataset:
    """A map-style torch dataset of (input, target) pairs, read when needed."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: torch.Tensor) -> Batch:
        """The examples at int64 `indices [b]`, collated."""
        inputs, targets = default_collate([self.dataset[int(index)] for index in indices])
        return inputs, targets


@dataclass(frozen=True, eq=False)
class Subset:
    """Some examples of another data set, read when needed.

    Attributes:
        dataset: The whole.
        indices: Which of its examples; int64 `[n]`.
    """

    dataset: Dataset
    indices: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: torch.Tensor) -> Batch:
        """The examples at int64 `indices [b]` of this part, in that order."""
        return self.dataset.batch(self.indices[indices])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set with its held-out part.

    Attributes:
        train: Examples to train on.
        test: Examples to test on, or None.
    """

    train: Dataset
    test: Dataset | None = None

    @classmethod
    def of(cls, data: object) -> "DataSet":
        """`DataSet`, `Samples`, anything with `batch`, or a map-style torch dataset, as a `DataSet`.

        Raises:
            AdmissionError: if it is none of these.
        """
        if isinstance(data, DataSet):
            return data
        if isinstance(data, Dataset):
            return cls(data)
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            return cls(TorchDataset(data))
        raise AdmissionError(
            f"{type(data).__name__} is no data set; give kn.Samples(inputs, targets) or a torch Dataset"
        )

    def split(self, partition: "Partition | Natural", clients: int | None = None, seed: int = 0) -> "Population":
        """Many clients out of this one data set.

        A drawn partition (`IID`, `Dirichlet`, ...) divides `train` alone: `test` stays whole, to judge the
        global model by. `Natural` divides both, so that every client has its own test part.

        Args:
            partition: Who gets which examples.
            clients: How many clients; by default 100, or with `Natural` as many as there are groups.
            seed: Of the draw; equal seeds give equal parts.

        Raises:
            AdmissionError: if the data cannot be divided so.
        """
        from koinon.data.population import split  # a population is made of data sets, so it imports this module

        return split(self, partition, clients, seed)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory of its own."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
