"""A checkpoint is there whole or not at all."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file

from koinon.core.errors import VerificationFailed
from koinon.core.layout import Layout
from koinon.durable import checkpoint
from koinon.durable.checkpoint import ServerState


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@settings(max_examples=40, deadline=None)
@given(model=arrays.arrays("<f4", st.integers(1, 50), elements=st.floats(width=32, allow_nan=False)))
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path_factory, model):
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    saved = ServerState(
        torch.from_numpy(model),
        {"exp_avg": torch.ones(3), "step": torch.tensor(2.0)},
        {"0.norm": torch.tensor(1)},
        {"7/0.rounds": torch.tensor(4)},
    )
    checkpoint.save(path, saved)
    loaded = checkpoint.load(path)
    assert loaded.model.numpy().tobytes() == model.tobytes()
    assert same(loaded.optimizer, saved.optimizer)
    assert same(loaded.stages, saved.stages)
    assert same(loaded.clients, saved.clients)


def test_the_models_bytes_can_be_read_where_they_lie(tmp_path):
    path = tmp_path / "state.safetensors"
    model = torch.arange(1000.0)
    checkpoint.save(path, ServerState(model, {"a": torch.ones(3)}, {"z": torch.ones(5)}))
    start, stop = checkpoint.model_span(path)
    assert b"".join(checkpoint.read_span(path, start, stop)) == model.numpy().tobytes()
    assert b"".join(checkpoint.read_span(path, start + 4, start + 12)) == model[1:3].numpy().tobytes()
    assert checkpoint.digest(model) == hashlib.sha256(model.numpy().tobytes()).hexdigest()


def test_large_files_are_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "READ_BYTES", 10)
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(25)))
    assert [len(piece) for piece in checkpoint.read_span(path, 1, 25)] == [10, 10, 4]
    with pytest.raises(VerificationFailed, match="ends early"):
        list(checkpoint.read_span(path, 0, 26))


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, ServerState(torch.ones(3), {}, {}))
    with pytest.raises(RuntimeError), checkpoint.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert torch.equal(checkpoint.load(path).model, torch.ones(3))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:20], lambda data: data[:-1], None])
def test_a_damaged_or_missing_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, ServerState(torch.ones(3), {}, {}))
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(VerificationFailed, match=r"state\.safetensors is missing or damaged"):
        checkpoint.load(path)


def test_an_exported_model_is_loaded_by_name(tmp_path):
    module = torch.nn.Linear(2, 1)
    layout = Layout.of(module)
    checkpoint.export(tmp_path / "model.safetensors", layout, torch.tensor([1.0, 2.0, 3.0]))
    module.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert torch.equal(layout.gather(module), torch.tensor([1.0, 2.0, 3.0]))
