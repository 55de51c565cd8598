"""CSV and Parquet: what is read, in which order, and what is refused."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon import data
from koinon.core.errors import AdmissionError, Unavailable


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes, name: str = "ward.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-9, 9), st.integers(0, 3)),
        min_size=1,
        max_size=20,
    )
)
def test_numbers_come_back_from_csv_and_parquet_alike(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "t.csv").write_text("a,b,y\n" + "".join(f"{a!r},{b},{y}\n" for a, b, y in rows))
    columns = dict(zip("aby", map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "t.parquet")
    for path in (folder / "t.csv", folder / "t.parquet"):
        samples = data.load(path, test=0).train
        assert torch.equal(samples.inputs, torch.tensor([row[:2] for row in rows], dtype=torch.float32))
        assert samples.targets.tolist() == [row[2] for row in rows]
        assert samples.targets.dtype == torch.int64


def test_text_becomes_columns_in_alphabetical_order(written):
    path = written("age,sex,sick\n30,m,no\n40,f,yes\n50,m,no\n")
    samples = data.load(path, test=0).train
    assert samples.inputs.tolist() == [[30, 0, 1], [40, 1, 0], [50, 0, 1]]
    assert samples.targets.tolist() == [0, 1, 0]


def test_named_categories_make_nodes_agree(written):
    part = written("sex,stage,sick\nm,2,yes\n")
    categories = {"sex": ["f", "m"], "stage": ["1", "2"], "sick": ["no", "yes"]}
    samples = data.load(part, test=0, categories=categories).train
    assert samples.inputs.tolist() == [[0, 1, 0, 1]]
    assert samples.targets.tolist() == [1]


def test_rows_with_a_missing_value_in_a_used_column_are_dropped(written):
    path = written("a,b,y\n1,5,0\n,6,1\n3,?,1\n4,NA,0\n")
    assert data.load(path, test=0).train.inputs.tolist() == [[1, 5]]
    assert data.load(path, test=0, features=["a"]).train.inputs.tolist() == [[1], [3], [4]]


def test_target_and_features_are_chosen_by_name_and_other_numbers_are_regression(written):
    path = written("\ufeffy,a,b\n1.5,1,2\n2.0,3,4\n\n")
    samples = data.load(path, test=0, target="y", features=["b", "a"]).train
    assert samples.inputs.tolist() == [[2, 1], [4, 3]]
    assert samples.targets.tolist() == [[1.5], [2.0]]
    assert samples.targets.dtype == torch.float32


def test_a_group_column_makes_natural_clients_and_is_no_input(written):
    rows = "".join(f"{ward},{number},{number % 2}\n" for number in range(10) for ward in ("Ward 7", "East"))
    loaded = data.load(written("ward,a,y\n" + rows), group="ward")
    assert loaded.train.inputs.shape == (16, 1)
    population = loaded.split(data.Natural())
    assert list(population.ids) == ["east", "ward-7"]
    assert [len(population["east"].train), len(population["east"].test)] == [8, 2]


def test_parquet_reads_text_booleans_dictionaries_and_nulls(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table(
        {
            "smoker": [True, False, True, None],
            "sex": pa.array(["m", "f", "m", "f"]).dictionary_encode(),
            "dose": [1, 2, None, 4],
            "outcome": ["bad", "good", "good", "bad"],
        }
    )
    pq.write_table(table, path)
    samples = data.load(path, test=0).train
    assert samples.inputs.tolist() == [[1, 0, 1, 1], [0, 1, 0, 2]]
    assert samples.targets.tolist() == [0, 1]


def test_the_test_part_is_a_stratified_fifth_by_default(written):
    path = written("a,y\n" + "".join(f"{number},{number % 2}\n" for number in range(50)))
    loaded = data.load(path)
    assert loaded.test.targets.bincount().tolist() == [5, 5]
    assert data.load(path, seed=1).test.inputs.tolist() != loaded.test.inputs.tolist()
    assert data.load(path, test=0).test is None


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("", {}, Unavailable, "is empty"),
        ("a,y\n", {}, Unavailable, "is empty"),
        ("1,2\n3,4\n", {}, Unavailable, "must name every column"),
        ("a,a\n3,4\n", {}, Unavailable, "must name every column"),
        ("a,y\n1,2\n3\n", {}, Unavailable, "line 3: 1 cells, but the first line names 2 columns"),
        ("a,y\n1,0\nx1,1\n", {}, Unavailable, "ward.csv, line 3: 'x1' among the numbers of column 'a'"),
        ("a,y\ninf,0\n", {}, Unavailable, "infinite or too large"),
        ("a,y\n1e99,0\n", {}, Unavailable, "infinite or too large"),
        ("a,y\n,0\nNaN,1\n", {}, Unavailable, "no row with a value in each of: a, y"),
        (b"a,y\n\xff,1\n", {}, Unavailable, "is no CSV file in UTF-8"),
        ('a,y\n"1,1\n', {}, Unavailable, "is no CSV file in UTF-8"),
        ("a,y\n1,2\n", {"target": "sick"}, AdmissionError, "ward.csv has no column 'sick'; it has: a, y"),
        ("a,y\n1,2\n", {"features": ["b"]}, AdmissionError, "no column 'b'; it has: a, y"),
        ("a,y\n1,2\n", {"group": "site"}, AdmissionError, "no column 'site'; it has: a, y"),
        ("a,y\n1,2\n", {"categories": {"c": []}}, AdmissionError, "no column 'c'; it has: a, y"),
        ("a,y\n1,2\n", {"features": ["y"]}, AdmissionError, "'y' is the target; name at least one other column"),
        ("y\n1\n", {}, AdmissionError, "'y' is the target"),
        (
            "a,y\nm,2\n",
            {"categories": {"a": ["f"]}},
            AdmissionError,
            "'a' holds 'm', which is not among its categories 'f'",
        ),
        ("id,y\n" + "".join(f"p{n},0\n" for n in range(101)), {}, AdmissionError, "holds 101 different texts"),
        ("a,y\n1,2\n", {"test": 1.0}, AdmissionError, r"test=1.0 must be a share in \[0, 1\)"),
        ("a,y\n1,2\n", {"site": "x"}, AdmissionError, ".csv takes no site=; it takes categories=, features="),
    ],
)
def test_a_bad_csv_is_refused_in_one_line(written, text, options, error, message):
    with pytest.raises(error, match=message) as caught:
        data.load(written(text), **options)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_damaged_parquet_are_unavailable(tmp_path, written):
    with pytest.raises(Unavailable, match=r"cannot read .*none\.csv: No such file"):
        data.load(tmp_path / "none.csv")
    with pytest.raises(Unavailable, match=r"cannot read .*none\.parquet: No such file"):
        data.load(tmp_path / "none.parquet")
    with pytest.raises(Unavailable, match="is no Parquet file, or is damaged") as caught:
        data.load(written("PAR1 but no more", "cut.parquet"))
    assert "\n" not in str(caught.value)


def test_a_parquet_column_that_is_no_number_or_text_is_refused(tmp_path):
    pq.write_table(pa.table({"scan": [[1, 2], [3]], "y": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(AdmissionError, match="column 'scan' is list"):
        data.load(tmp_path / "t.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(Unavailable, match=r"pyarrow is not installed; pip install 'koinon\[parquet\]'"):
        data.load(tmp_path / "t.parquet")
