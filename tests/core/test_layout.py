"""Laws of Layout: a module and its vector say the same, exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout

HELD = (torch.float32, torch.float16, torch.bfloat16)


class Tensors(nn.Module):
    """Any tensors, of four kinds by turns: trainable, frozen, floating buffer, integer buffer."""

    def __init__(self, kinds: list[tuple[str, tuple[int, ...], torch.dtype]], seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        for index, (kind, shape, dtype) in enumerate(kinds):
            values = torch.randn(shape, generator=rng).to(dtype)
            if kind == "counter":
                self.register_buffer(f"t{index}", torch.full(shape, index))
            elif kind == "buffer":
                self.register_buffer(f"t{index}", values)
            else:
                self.register_parameter(f"t{index}", nn.Parameter(values, requires_grad=kind == "trainable"))


KINDS = st.tuples(
    st.sampled_from(["trainable", "frozen", "buffer", "counter"]),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(HELD),
)
MODULES = st.lists(KINDS, min_size=1, max_size=8).filter(lambda kinds: any(kind[0] == "trainable" for kind in kinds))


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()


@given(MODULES, st.integers(0, 99))
def test_a_module_comes_back_from_its_vector_to_the_bit(kinds, seed):
    module = Tensors(kinds, seed)
    layout = Layout.of(module)
    vector = layout.gather(module)
    other = Tensors(kinds, seed + 1)
    untouched = {
        f"t{i}": bits(getattr(other, f"t{i}")) for i, (kind, *_) in enumerate(kinds) if kind in ("frozen", "counter")
    }
    layout.scatter(vector, other)
    for index, (kind, *_) in enumerate(kinds):
        name = f"t{index}"
        if kind in ("trainable", "buffer"):
            assert bits(getattr(other, name)) == bits(getattr(module, name))
        else:
            assert bits(getattr(other, name)) == untouched[name]
    assert torch.equal(layout.gather(other), vector)


@given(MODULES, st.integers(0, 99))
def test_the_vector_holds_trainable_parameters_and_floating_buffers_without_gaps(kinds, seed):
    module = Tensors(kinds, seed)
    layout = Layout.of(module)
    assert [slot.name for slot in layout.slots] == [
        name for name in module.state_dict() if kinds[int(name[1:])][0] in ("trainable", "buffer")
    ]
    assert [slot.start for slot in layout.slots] == [0, *(slot.stop for slot in layout.slots)][:-1]
    assert layout.gather(module).shape == (layout.length,) == (layout.slots[-1].stop,)
    assert layout.gather(module).dtype == torch.float32
    assert [slot.trainable for slot in layout.slots] == [
        kinds[int(slot.name[1:])][0] == "trainable" for slot in layout.slots
    ]


@given(MODULES, st.integers(0, 99))
def test_a_state_dict_is_loadable_and_shares_no_memory(kinds, seed):
    module = Tensors(kinds, seed)
    layout = Layout.of(module)
    vector = layout.gather(module)
    state = layout.state_dict(vector)
    other = Tensors(kinds, seed + 1)
    result = other.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert torch.equal(layout.gather(other), vector)
    before = vector.clone()
    for tensor in state.values():
        tensor.fill_(7)
    assert torch.equal(vector, before)


def test_views_share_the_vectors_memory():
    module = nn.Linear(2, 3)
    layout = Layout.of(module)
    vector = layout.gather(module)
    layout.views(vector)["bias"].fill_(5)
    assert vector[6:].tolist() == [5, 5, 5]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_in_the_vector_once_and_in_the_state_dict_twice():
    module = Tied()
    layout = Layout.of(module)
    assert layout.length == 15
    assert layout.aliases == (("head.weight", "embed.weight"),)
    vector = torch.arange(15.0)
    layout.scatter(vector, module)
    assert module.head.weight is module.embed.weight
    assert torch.equal(module.head.weight.flatten(), vector)
    fresh = Tied()
    assert fresh.load_state_dict(layout.state_dict(vector)).missing_keys == []


def test_batch_norms_running_statistics_are_in_the_vector_and_its_counter_is_not():
    names = [slot.name for slot in Layout.of(nn.BatchNorm1d(2)).slots]
    assert names == ["weight", "bias", "running_mean", "running_var"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_what_float32_cannot_hold_is_refused(dtype, kind):
    module = nn.Linear(1, 1)
    if kind == "parameter":
        module.register_parameter("odd", nn.Parameter(torch.zeros(2, dtype=dtype)))
    else:
        module.register_buffer("odd", torch.zeros(2, dtype=dtype))
    with pytest.raises(AdmissionError, match=r"odd .*\.float\(\)"):
        Layout.of(module)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(AdmissionError, match="requires_grad"):
        Layout.of(nn.Linear(1, 1).requires_grad_(False))


@pytest.mark.parametrize(
    "vector", [torch.zeros(4), torch.zeros(2), torch.zeros(1), torch.zeros(3, dtype=torch.float64)]
)
def test_a_vector_of_another_shape_or_dtype_is_refused(vector):
    module = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="expected float32"):
        Layout.of(module).scatter(vector, module)


def test_gathering_a_non_contiguous_parameter_keeps_its_logical_order():
    module = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    layout = Layout.of(module)
    assert torch.equal(layout.views(layout.gather(module))["weight"], module.weight.detach())
    vector = torch.arange(float(layout.length))
    layout.scatter(vector, module)
    assert torch.equal(layout.gather(module), vector)
