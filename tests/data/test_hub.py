"""Hugging Face data sets, from folders: no test asks the hub."""

import sys

import numpy as np
import pytest
import torch

from koinon import data
from koinon.core.errors import AdmissionError, Unavailable

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def table(count: int):
    features = datasets.Features(
        {
            "sick": datasets.ClassLabel(names=["no", "yes"]),
            "age": datasets.Value("float32"),
            "sex": datasets.Value("string"),
        }
    )
    rows = {
        "sick": [n % 2 for n in range(count)],
        "age": list(range(count)),
        "sex": ["mf"[n % 2] for n in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_saved_set_with_its_own_test_part(tmp_path):
    datasets.DatasetDict(train=table(10), test=table(8).select([1, 3, 5, 7])).save_to_disk(tmp_path / "saved")
    loaded = data.load(f"hf:{tmp_path / 'saved'}")
    assert loaded.train.inputs[:2].tolist() == [[0, 0, 1], [1, 1, 0]]
    assert loaded.train.targets.tolist() == [0, 1] * 5
    assert loaded.test.inputs.tolist() == [[age, 1, 0] for age in (1, 3, 5, 7)]  # the train part's categories
    with pytest.raises(AdmissionError, match="has a test part of its own"):
        data.load(f"hf:{tmp_path / 'saved'}", test=0.5)


def test_a_saved_set_without_a_test_part_is_held_out_from(tmp_path):
    table(10).save_to_disk(tmp_path / "saved")
    loaded = data.load(f"hf:{tmp_path / 'saved'}", target="age", features=["sick"], test=0.3)
    assert [len(loaded.train), len(loaded.test)] in ([7, 3], [6, 4], [8, 2])
    assert loaded.train.targets.shape[1:] == (1,)


def test_a_folder_of_parquet_files(tmp_path):
    (tmp_path / "folder").mkdir()
    table(10).to_parquet(tmp_path / "folder" / "train.parquet")
    loaded = data.load(f"hf:{tmp_path / 'folder'}", test=0)
    assert loaded.train.inputs.shape == (10, 3)


def test_a_column_of_arrays_keeps_its_shape(tmp_path):
    features = datasets.Features({"scan": datasets.Array2D((2, 3), "float32"), "label": datasets.Value("int64")})
    scans = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    datasets.Dataset.from_dict({"scan": list(scans), "label": [0, 1, 0, 1]}, features=features).save_to_disk(
        tmp_path / "s"
    )
    loaded = data.load(f"hf:{tmp_path / 's'}", test=0)
    assert torch.equal(loaded.train.inputs, torch.from_numpy(scans))
    assert loaded.train.targets.tolist() == [0, 1, 0, 1]


def test_images_become_channels_first_in_zero_to_one(tmp_path):
    pytest.importorskip("PIL")
    pixels = [np.full((4, 5, 3), (255, 51, 0), dtype=np.uint8)] * 2
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"image": pixels, "label": [0, 1]}, features=features).save_to_disk(tmp_path / "s")
    inputs = data.load(f"hf:{tmp_path / 's'}", test=0).train.inputs
    assert inputs.shape == (2, 3, 4, 5)
    assert torch.allclose(inputs[0, :, 0, 0], torch.tensor([1, 0.2, 0]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"scan": [[1, 2], [3]], "label": [0, 1]}, "numeric arrays of one shape"),
        ({"scan": [["a"], ["b"]], "label": [0, 1]}, "numeric arrays of one shape"),
        ({"scan": [[1], [2]], "age": [3, 4], "label": [0, 1]}, "must be the only input"),
        ({"scan": [[1], [2]], "label": ["a", "b"]}, "the target 'label' must be a number in every row"),
        ({"scan": [[1], [2]], "label": [None, 1]}, "the target 'label' must be a number in every row"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, rows, message):
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "s")
    with pytest.raises(AdmissionError, match=message) as caught:
        data.load(f"hf:{tmp_path / 's'}")
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_and_a_missing_package_are_one_line(monkeypatch):
    with pytest.raises(Unavailable, match="cannot load the Hugging Face data set nobody/nothing: ") as caught:
        data.load("hf:nobody/nothing")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Unavailable, match=r"datasets is not installed; pip install 'koinon\[hf\]'"):
        data.load("hf:nobody/nothing")
