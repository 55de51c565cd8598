"""Tables as examples: which columns are inputs, which is the target, and how text becomes numbers."""

import csv
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from koinon.core.errors import AdmissionError, Unavailable
from koinon.data.dataset import Samples

_MISSING = frozenset(("", "?", "na", "n/a", "nan", "null", "none"))
_MOST_CATEGORIES = 100


@dataclass(frozen=True, eq=False)
class Column:
    """One column as it was read.

    Attributes:
        values: `[n]`: int64, float64, or text as objects.
        missing: Where there is no value; bool `[n]`.
    """

    values: npt.NDArray[Any]
    missing: npt.NDArray[np.bool_]

    @property
    def is_text(self) -> bool:
        """Whether its values are text."""
        return self.values.dtype == object


Table: TypeAlias = Mapping[str, Column]


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are for.

    A number stays as it is. A text becomes one column of 0 and 1 per category, in the order of `categories` or
    else in alphabetical order; a text target becomes the category's position. Inputs stand in the order of
    `features`, or else of the table.

    Attributes:
        target: The column to predict; by default the last. Whole numbers and text are classes, int64 `[n]`;
            other numbers are float32 `[n, 1]`.
        features: The input columns; by default all others.
        group: The column that says whose each row is; not an input unless named in `features`.
        categories: Column -> the texts it can hold. Nodes that each hold a part of the table must name them,
            or their columns would differ. Numbers in such a column are taken as text.
    """

    target: str | None = None
    features: tuple[str, ...] | None = None
    group: str | None = None
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def resolve(self, present: Sequence[str], where: str) -> "Columns":
        """The same with nothing left to default, for a table whose columns are `present`.

        Raises:
            AdmissionError: if a column is named that is not there, or no input is left.
        """
        for name in (self.target, self.group, *(self.features or ()), *self.categories):
            if name is not None and name not in present:
                raise AdmissionError(f"{where} has no column {name!r}; it has: {', '.join(present)}")
        target = self.target or next((name for name in reversed(present) if name != self.group), None)
        rest = tuple(name for name in present if name not in (target, self.group))
        features = rest if self.features is None else self.features
        if not features or target in features:
            raise AdmissionError(f"{where}: {target!r} is the target; name at least one other column in features=")
        return replace(self, target=target, features=features)

    @property
    def used(self) -> tuple[str, ...]:
        """The columns to read; needs a resolved self."""
        return tuple(dict.fromkeys((*self._inputs, self._target, *((self.group,) if self.group else ()))))

    def learn(self, table: Table) -> "Columns":
        """The same with the categories of every text column, as this table has them."""
        texts = {name: table[name] for name in (*self._inputs, self._target) if table[name].is_text}
        found = {name: sorted(set(column.values[~column.missing])) for name, column in texts.items()}
        return replace(self, categories={**found, **self.categories})

    def encode(self, table: Table, where: str) -> Samples:
        """The rows of which no used column is missing, as tensors; needs a resolved self.

        Raises:
            AdmissionError: if a text is not among its column's categories, or these are too many.
            Unavailable: if no row is complete, or a number is not finite.
        """
        complete = ~np.any([table[name].missing for name in self.used], axis=0)
        if not complete.any():
            raise Unavailable(f"{where} has no row with a value in each of: {', '.join(self.used)}")
        rows = {name: table[name].values[complete] for name in self.used}
        inputs = np.concatenate([self._numbers(name, rows[name], where) for name in self._inputs], axis=1)
        groups = tuple(slug(str(name)) for name in rows[self.group]) if self.group else None
        return Samples(torch.from_numpy(inputs), self.labels(rows[self._target], where), groups)

    def labels(self, values: npt.NDArray[Any], where: str) -> torch.Tensor:
        """Values of the target column as targets: int64 `[n]` if classes, else float32 `[n, 1]`."""
        if self._target in self.categories:
            return torch.from_numpy(self._positions(self._target, values, where))
        if values.dtype == np.int64:
            return torch.from_numpy(values.copy())  # Arrow's memory is read-only
        return torch.from_numpy(_finite(self._target, values, where)[:, None])

    def _numbers(self, name: str, values: npt.NDArray[Any], where: str) -> npt.NDArray[np.float32]:
        if name in self.categories:
            names = self.categories[name]
            if len(names) > _MOST_CATEGORIES:
                raise AdmissionError(
                    f"{where}: column {name!r} holds {len(names)} different texts; leave it out of features= "
                    f"or name at most {_MOST_CATEGORIES} categories"
                )
            return np.eye(len(names), dtype=np.float32)[self._positions(name, values, where)]
        return _finite(name, values, where)[:, None]

    def _positions(self, name: str, values: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
        positions = {category: position for position, category in enumerate(self.categories[name])}
        unknown = sorted({str(value) for value in values} - positions.keys())
        if unknown:
            raise AdmissionError(
                f"{where}: column {name!r} holds {unknown[0]!r}, which is not among its categories "
                f"{', '.join(map(repr, positions))}; name all of them in categories="
            )
        return np.array([positions[str(value)] for value in values], dtype=np.int64)

    @property
    def _inputs(self) -> tuple[str, ...]:
        return self.features or ()

    @property
    def _target(self) -> str:
        return self.target or ""


def read_csv(path: Path, columns: Columns) -> Samples:
    """The examples in a CSV file whose first line names the columns; UTF-8, commas.

    Empty cells, `?`, `NA`, `N/A`, `NaN`, `null` and `None` are missing, and drop their row.

    Raises:
        AdmissionError: if a named column is not there.
        Unavailable: if the file is not there, or is not such a table.
    """
    where = path.name
    header, rows = read_rows(path)
    columns = columns.resolve(header, where)
    table = {}
    for name in columns.used:
        place = header.index(name)
        cells = [row[place].strip() for _, row in rows]
        as_text = name in columns.categories or name == columns.group
        table[name] = _typed(name, cells, [line for line, _ in rows], where, as_text)
    return columns.learn(table).encode(table, where)


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """A CSV file's column names, and its rows as (line number, cells).

    Raises:
        Unavailable: if the file is not there, is empty, or has rows of different lengths.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise Unavailable(f"{path} is no CSV file in UTF-8: {error}") from None
    header = [name.strip() for name in rows[0][1]] if rows else []
    if len(rows) < 2:
        raise Unavailable(f"{path} is empty; expected a line of column names, and rows below it")
    if "" in header or len(set(header)) < len(header) or all(map(_is_number, header)):
        raise Unavailable(f"{path}: the first line must name every column, each differently")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise Unavailable(f"{path}, line {line}: {len(row)} cells, but the first line names {len(header)} columns")
    return header, rows[1:]


def read_parquet(path: Path, columns: Columns) -> Samples:
    """The examples in a Parquet file.

    Raises:
        AdmissionError: if a named column is not there, or is neither numbers nor text.
        Unavailable: if the file is not there or is damaged, or pyarrow is not installed.
    """
    parquet = required("pyarrow.parquet", "parquet")
    try:
        with path.open("rb") as file:
            columns = columns.resolve(parquet.read_schema(file).names, path.name)
            arrow = parquet.read_table(file, columns=list(columns.used))
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except required("pyarrow", "parquet").ArrowException as error:
        raise Unavailable(f"{path} is no Parquet file, or is damaged: {first_line(error)}") from None
    table = from_arrow(arrow, columns.used, path.name)
    return columns.learn(table).encode(table, path.name)


def from_arrow(table: Any, names: Iterable[str], where: str) -> Table:
    """Columns of a pyarrow table.

    Raises:
        AdmissionError: if one is neither numbers nor text.
    """
    return {name: _from_arrow(name, table.column(name), where) for name in names}


def required(module: str, extra: str) -> Any:
    """An optional dependency.

    Raises:
        Unavailable: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Unavailable(f"{module.split('.')[0]} is not installed; pip install 'koinon[{extra}]'") from None


def first_line(error: Exception) -> str:
    """What a library's error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def slug(name: str) -> str:
    """A group's name as a client's name: lower case, and `-` for all that is not a letter, digit, `.` or `_`."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-._") or "unnamed"


def _typed(name: str, cells: list[str], lines: list[int], where: str, as_text: bool) -> Column:
    """A column of text cells as numbers, if that is what they are."""
    missing = np.array([cell.lower() in _MISSING for cell in cells])
    numeric = [not gone and _is_number(cell) for cell, gone in zip(cells, missing, strict=True)]
    if as_text or (not any(numeric) and not missing.all()):
        return Column(np.array(cells, dtype=object), missing)
    for line, cell, good, gone in zip(lines, cells, numeric, missing, strict=True):
        if not good and not gone:
            raise Unavailable(
                f"{where}, line {line}: {cell!r} among the numbers of column {name!r}; correct or empty the cell, "
                "or name the column in categories="
            )
    filled = ["0" if gone else cell for cell, gone in zip(cells, missing, strict=True)]
    try:
        return Column(np.array([int(cell) for cell in filled], dtype=np.int64), missing)
    except (ValueError, OverflowError):
        return Column(np.array([float(cell) for cell in filled]), missing)


def _from_arrow(name: str, column: Any, where: str) -> Column:
    arrow = required("pyarrow", "parquet")
    types = arrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    missing = column.is_null().to_numpy()
    kind = column.type
    if types.is_boolean(kind) or types.is_integer(kind):
        return Column(column.cast(arrow.int64()).fill_null(0).to_numpy(), missing)
    if types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
        values = column.cast(arrow.float64()).fill_null(np.nan).to_numpy()
        return Column(values, np.isnan(values))
    if types.is_string(kind) or types.is_large_string(kind):
        return Column(np.array(column.fill_null("").to_pylist(), dtype=object), missing)
    raise AdmissionError(
        f"{where}: column {name!r} is {kind}; only numbers and text can be read, so name others in features="
    )


def _finite(name: str, values: npt.NDArray[Any], where: str) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise Unavailable(f"{where}: column {name!r} holds a number that is infinite or too large for float32")
    return numbers


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
