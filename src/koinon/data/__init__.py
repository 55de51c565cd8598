"""Data sets, and how one becomes many clients."""

from koinon.data.dataset import Batch, DataSet, Dataset, Samples, Subset, TorchDataset
from koinon.data.partition import IID, Dirichlet, EqualDirichlet, Natural, Partition, QuantitySkew, Shards
from koinon.data.population import Population
from koinon.data.sources import load
from koinon.data.tables import Columns

__all__ = [
    "IID",
    "Batch",
    "Columns",
    "DataSet",
    "Dataset",
    "Dirichlet",
    "EqualDirichlet",
    "Natural",
    "Partition",
    "Population",
    "QuantitySkew",
    "Samples",
    "Shards",
    "Subset",
    "TorchDataset",
    "load",
]
