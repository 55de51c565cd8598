"""The mean: right, in any cut, and equal whether rows are streamed, in memory or in files."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import koinon as kn
from koinon.aggregate import mean as module
from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Matrix, Summing
from koinon.core.rng import generator
from koinon.run.work import EncodedRows
from koinon.update.codec import Float32, OnDisk, Shared, flat

MATRICES = st.tuples(st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**32))

SHARED = Shared(flat(100))


def matrix(shape):
    rows, columns, seed = shape
    return torch.randn(rows, columns, generator=generator(seed, "matrix")) * 10


@given(MATRICES)
def test_equals_numpys_weighted_average_in_float64(shape):
    updates = matrix(shape)
    weights = torch.rand(len(updates), generator=generator(3, "weights")).tolist()
    expected = np.average(updates.double().numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(Mean()(updates, weights).numpy(), expected.astype(np.float32), rtol=1e-6, atol=1e-6)


@given(MATRICES, st.integers(1, 8))
def test_the_bits_do_not_depend_on_the_blocks(shape, block):
    updates = matrix(shape)
    whole = Mean()(updates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert torch.equal(Mean()(updates), whole)


@given(MATRICES)
def test_adding_rows_one_by_one_gives_the_same_bits(shape):
    updates = matrix(shape)
    weights = [float(number + 1) for number in range(len(updates))]
    state = Mean().init(updates.shape[1])
    for row, weight in zip(updates, weights, strict=True):
        state = Mean().add(state, row, weight)
    assert torch.equal(Mean().finish(state), Mean().reduce(Matrix(updates, weights)))


@given(MATRICES, st.floats(0, 1e12) | st.integers(0, 1 << 31).map(float))
def test_a_whole_weight_is_added_as_any_other(shape, weight):
    updates = matrix(shape)
    total, weights = Mean().add(Mean().init(updates.shape[1]), updates[0], weight)
    total, weights = Mean().add((total, weights), updates[-1], weight)
    products = [row.double() * weight for row in (updates[0], updates[-1])]
    assert torch.equal(total, products[0] + products[1]) and weights == 2 * weight


def test_rows_in_files_give_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 37)
    updates = matrix((4, 100, 5))
    weights = [1.0, 2.0, 3.0, 4.0]
    files = []
    for number, row in enumerate(updates):
        path = tmp_path / str(number)
        path.write_bytes(Float32().encode({}, row, SHARED, generator(0, "none"))[1])
        files.append(OnDisk(path))
    assert torch.equal(Mean().reduce(EncodedRows(Float32(), files, weights, SHARED)), Mean()(updates, weights))


def test_float64_accumulation_keeps_what_float32_would_lose():
    updates = torch.tensor([[1e8], [1.0], [-1e8]])
    assert Mean()(updates).item() == pytest.approx(1 / 3)


def test_weights_of_zero_move_nothing():
    assert torch.equal(Mean()(torch.ones(2, 3), [0.0, 0.0]), torch.zeros(3))


def test_no_updates_have_no_mean():
    with pytest.raises(ValueError, match="no updates"):
        Mean()(torch.empty(0, 3))


def test_the_mean_needs_only_the_sum():
    assert isinstance(Mean(), Summing)
    assert kn.Mean is Mean
