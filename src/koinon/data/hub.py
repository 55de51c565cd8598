"""Hugging Face data sets, from the hub or from a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from koinon.core.errors import AdmissionError, Unavailable
from koinon.data.dataset import DataSet, Samples
from koinon.data.partition import hold_out
from koinon.data.tables import Columns, first_line, from_arrow, required

HUB = "hf:"
"""What a source that is a Hugging Face data set begins with."""

_TEST_PARTS = ("test", "validation")


def from_hub(name: str, columns: Columns, test: float | None, share: float, seed: int) -> DataSet:
    """The data set called `name` on the hub, or in the folder `name`; see `load`.

    Scalar columns are read as a table is. A single input column may hold arrays of one shape, as float32, or
    images, as float32 in [0, 1] and `[n, channels, height, width]`.

    Raises:
        AdmissionError: if the columns cannot be read so, or `test` is given though there is a test part.
        Unavailable: if the data set or the package `datasets` is missing.
    """
    parts = _parts(name)
    train = parts.get("train") or next(iter(parts.values()))
    held = next((parts[part] for part in _TEST_PARTS if part in parts and parts[part] is not train), None)
    columns = _resolve(columns, train, name)
    if any(_is_array(train.features[feature]) for feature in columns.features or ()):
        samples = [_arrays(part, columns, name) for part in (train, held) if part is not None]
    else:
        tables = [
            from_arrow(part.with_format("arrow")[:], columns.used, name) for part in (train, held) if part is not None
        ]
        columns = columns.learn(tables[0])
        samples = [columns.encode(table, name) for table in tables]
    if held is None:
        return hold_out(samples[0], share, seed)
    if test is not None:
        raise AdmissionError(f"{name} has a test part of its own; leave out test={test}")
    return DataSet(*samples)


def _parts(name: str) -> dict[str, Any]:
    datasets = required("datasets", "hf")
    folder = Path(name)
    saved = any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the library's errors have no common type: OSError, ValueError, httpx, pyarrow, ...
        raise Unavailable(f"cannot load the Hugging Face data set {name}: {first_line(error)}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _resolve(columns: Columns, train: Any, name: str) -> Columns:
    """The columns' roles; by default the target is the only ClassLabel."""
    labels = [column for column, kind in train.features.items() if type(kind).__name__ == "ClassLabel"]
    if columns.target is None and len(labels) == 1:
        columns = replace(columns, target=labels[0])
    return columns.resolve(train.column_names, name)


def _is_array(feature: Any) -> bool:
    """Whether it is anything but one number or text per example."""
    return type(feature).__name__ not in ("Value", "ClassLabel")


def _arrays(part: Any, columns: Columns, name: str) -> Samples:
    """The samples whose one input column holds arrays."""
    feature, *others = columns.features or ()
    if others or columns.group or columns.categories:
        raise AdmissionError(f"{name}: a column of arrays must be the only input; name one column in features=")
    try:
        values = np.asarray(part.select_columns([feature]).with_format("numpy")[:][feature])
    except ImportError as error:
        raise Unavailable(f"{name}: column {feature!r} needs another package: {first_line(error)}") from None
    if values.dtype.kind not in "biuf":
        raise AdmissionError(f"{name}: the rows of column {feature!r} must be numeric arrays of one shape")
    inputs = torch.from_numpy(values.astype(np.float32))
    if type(part.features[feature]).__name__ == "Image":
        inputs = (inputs.unsqueeze(1) if inputs.ndim == 3 else inputs.movedim(-1, 1).contiguous()) / 255
    target = columns.target or ""
    column = from_arrow(part.select_columns([target]).with_format("arrow")[:], (target,), name)[target]
    if column.is_text or column.missing.any():
        raise AdmissionError(f"{name}: the target {target!r} must be a number in every row; name another in target=")
    return Samples(inputs, columns.labels(column.values, name))
