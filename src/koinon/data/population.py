"""Client id -> data set, lazily: a million clients cost no memory until they are sampled."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import torch

from koinon.core.errors import AdmissionError
from koinon.core.rng import generator
from koinon.core.types import ClientId, canonical
from koinon.data.dataset import DataSet, Dataset, Samples, Subset
from koinon.data.partition import Natural, Partition

Make: TypeAlias = Callable[[int], object]
"""Client number, from 0 -> its `Samples`, `DataSet` or torch dataset; the same whenever it is asked for."""

_DEFAULT_CLIENTS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Population:
    """Everyone who could take part. A client's data is made when it is asked for, and not kept.

    Attributes:
        ids: The clients, in canonical order; a sequence that need not lie in memory.
        make: Id -> `Samples`, `DataSet` or torch dataset; the same whenever it is asked for.

    Raises:
        AdmissionError: if nobody is in it.
    """

    ids: Sequence[ClientId]
    make: Callable[[ClientId], object]

    def __post_init__(self) -> None:
        if not len(self.ids):
            raise AdmissionError("a population needs at least one client")

    @classmethod
    def of(cls, source: object, size: int | None = None) -> "Population":
        """A population from what there is.

        Args:
            source: A list of data sets, for the ids "0", "1", ...; a mapping from names to data sets; or a
                function from a client's number, 0 to `size` - 1, to its data set. A data set is `Samples`,
                a `DataSet` or a map-style torch dataset.
            size: How many clients, with a function.

        Raises:
            AdmissionError: if it is none of these.
        """
        if size is not None and not (isinstance(size, int) and size >= 1 and callable(source)):
            raise AdmissionError(
                f"size={size!r}: size is a whole number of clients, at least 1, and goes with a function"
            )
        match source:
            case Population():
                return source
            case Mapping():
                return cls(_names(source), _Listed({name: _data(name, source[name]) for name in source}))
            case Sequence() if not isinstance(source, str | bytes):
                data = {str(number): _data(str(number), each) for number, each in enumerate(source)}
                return cls(Numbered(range(len(data))), _Listed(data))
            case _ if callable(source) and size is not None:
                return cls(Numbered(range(size)), _ByNumber(source))
            case _ if callable(source):
                raise AdmissionError("a population made by a function needs size=, the number of its clients")
        raise AdmissionError(
            f"{type(source).__name__} is no population; give a list or mapping of data sets, or a function and size=; "
            "one data set becomes many by .split(...)"
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, client: ClientId) -> DataSet:
        if client not in self.ids:
            some = ", ".join(self.ids[:3]) + (", ..." if len(self) > 3 else "")
            raise AdmissionError(f"no client {client!r} in this population of {len(self)}: {some}")
        return _data(client, self.make(client))

    def size(self, client: ClientId) -> int | None:
        """How many examples a client trains on, where that is known without making its data; None elsewhere."""
        size: Callable[[ClientId], int | None] | None = getattr(self.make, "size", None)
        return None if size is None else size(client)

    def first(self, clients: int) -> "Population":
        """The first `clients` of this population.

        Raises:
            AdmissionError: if there are not so many.
        """
        if not 1 <= clients <= len(self):
            raise AdmissionError(f"cannot take the first {clients} of a population of {len(self)}")
        return Population(self.ids[:clients], self.make)


@dataclass(frozen=True)
class Sizes(Mapping[ClientId, int]):
    """Client -> how many examples it trains on; a client's data is made when its size is asked for."""

    population: Population

    def __getitem__(self, client: ClientId) -> int:
        return len(self.population[client].train)

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self.population.ids)

    def __len__(self) -> int:
        return len(self.population)

    def __contains__(self, client: object) -> bool:
        return client in self.population.ids


@dataclass(frozen=True)
class Numbered(Sequence[ClientId]):
    """The ids "0", "1", ...: a sequence that is never written out.

    Attributes:
        numbers: The numbers, as a range.
    """

    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> ClientId: ...
    @overload
    def __getitem__(self, index: slice) -> "Numbered": ...
    def __getitem__(self, index: int | slice) -> "ClientId | Numbered":
        return Numbered(self.numbers[index]) if isinstance(index, slice) else str(self.numbers[index])

    def __contains__(self, client: object) -> bool:
        if not isinstance(client, str) or not client.isdecimal() or len(client) > 19:
            return False
        return str(int(client)) == client and int(client) in self.numbers


def split(data: DataSet, partition: Partition | Natural, clients: int | None, seed: int) -> Population:
    """`DataSet.split`."""
    if isinstance(partition, Natural):
        return _by_group(data, clients)
    clients = _DEFAULT_CLIENTS if clients is None else clients
    if clients < 1:
        raise AdmissionError(f"cannot split data among {clients} clients; at least 1")
    owners = partition.owners(data.train, clients, generator(seed, "partition"))
    if owners.shape != (len(data.train),) or owners.min() < 0 or owners.max() >= clients:
        raise AdmissionError(
            f"{partition} must give each of {len(data.train)} examples an owner from 0 to {clients - 1}"
        )
    parts = _Parts.of(data.train, owners, clients)
    return Population(Numbered(range(clients)), _ByNumber(parts.of_client, parts.size))


def _by_group(data: DataSet, clients: int | None) -> Population:
    """One client per group of the train part; test examples of other groups are nobody's."""
    groups = _groups(data.train)
    names = _names(groups)
    if clients not in (None, len(names)):
        raise AdmissionError(
            f"Natural() makes {len(names)} clients of this data, one per group; leave out clients={clients}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    train = _Parts.of(data.train, torch.tensor([numbers[group] for group in groups]), len(names))
    test = None
    if data.test is not None:
        owners = torch.tensor([numbers.get(group, len(names)) for group in _groups(data.test)])
        test = _Parts.of(data.test, owners, len(names) + 1)
    return Population(names, _ByName(numbers, train, test))


@dataclass(frozen=True, eq=False)
class _Parts:
    """One data set cut into parts: all clients' indices end to end, and where each client's begin."""

    examples: Dataset
    order: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def of(cls, examples: Dataset, owners: torch.Tensor, clients: int) -> "_Parts":
        sizes = torch.bincount(owners, minlength=clients)
        return cls(examples, owners.argsort(stable=True), torch.cat((torch.zeros_like(sizes[:1]), sizes.cumsum(0))))

    def size(self, number: int) -> int:
        return int(self.starts[number + 1] - self.starts[number])

    def of_client(self, number: int) -> Dataset:
        indices = self.order[self.starts[number] : self.starts[number + 1]]
        return self.examples.subset(indices) if isinstance(self.examples, Samples) else Subset(self.examples, indices)


@dataclass(frozen=True)
class _Listed:
    """Id -> data set, of those there are."""

    data: Mapping[ClientId, DataSet]

    def __call__(self, client: ClientId) -> DataSet:
        return self.data[client]

    def size(self, client: ClientId) -> int:
        return len(self.data[client].train)


@dataclass(frozen=True)
class _ByNumber:
    """Id -> data set, from a function of the number that the id is, and perhaps one that knows how large it is."""

    make: Make
    size_of: Callable[[int], int] | None = None

    def __call__(self, client: ClientId) -> object:
        return self.make(int(client))

    def size(self, client: ClientId) -> int | None:
        return None if self.size_of is None else self.size_of(int(client))


@dataclass(frozen=True)
class _ByName:
    """Id -> its train and test part."""

    numbers: Mapping[ClientId, int]
    train: _Parts
    test: _Parts | None

    def size(self, client: ClientId) -> int:
        return self.train.size(self.numbers[client])

    def __call__(self, client: ClientId) -> DataSet:
        number = self.numbers[client]
        test = self.test.of_client(number) if self.test else None
        return DataSet(self.train.of_client(number), test if test is not None and len(test) else None)


def _data(client: ClientId, data: object) -> DataSet:
    try:
        return DataSet.of(data)
    except AdmissionError as error:
        raise AdmissionError(f"client {client}: {error}") from None


def _groups(examples: Dataset) -> tuple[str, ...]:
    if not isinstance(examples, Samples) or examples.groups is None:
        raise AdmissionError(
            "Natural() needs data that says whose each example is: kn.Samples(inputs, targets, groups) "
            "or kn.data.load(path, group=COLUMN)"
        )
    return examples.groups


def _names(names: Iterable[object]) -> tuple[ClientId, ...]:
    """The distinct names in canonical order."""
    for name in (distinct := set(names)):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise AdmissionError(
                f"{name!r} cannot name a client; use 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit"
            )
    return tuple(canonical(distinct))  # type: ignore[arg-type]
