"""Named tensors <-> one flat float32 vector.

Everything after local training works on one contiguous float32 vector. A `Layout` says which part of it is
which tensor. In the vector: parameters that require a gradient, and floating buffers (BatchNorm's running
mean). Not in the vector: frozen parameters and integer buffers (BatchNorm's counter), which stay local.
Tied weights are in it once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import nn

from koinon.core.errors import AdmissionError
from koinon.core.types import Vector

_EXACT = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds each of their values exactly


@dataclass(frozen=True)
class Slot:
    """One tensor's place in the vector.

    Attributes:
        name: Its name in the module's state dict.
        shape: Its shape.
        dtype: Its dtype in the module; in the vector it is float32.
        start: Index of its first element.
        trainable: Whether it is a parameter (False: a buffer, or what is beside the model).
        beside: Whether it is no part of the model, but what an algorithm has travel with it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    trainable: bool
    beside: bool = False

    @property
    def stop(self) -> int:
        """Index after its last element."""
        return self.start + prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The order of named tensors in a vector of length D.

    Attributes:
        slots: The tensors, in state-dict order, without gaps.
        aliases: Pairs (other name, name in `slots`) of tied tensors.
    """

    slots: tuple[Slot, ...]
    aliases: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """The layout of a module's trainable parameters and floating buffers.

        Raises:
            AdmissionError: if a tensor is float64 or complex, which float32 cannot hold exactly, or if
                nothing is trainable.
        """
        slots: list[Slot] = []
        aliases: list[tuple[str, str]] = []
        first: dict[int, str] = {}
        start = 0
        for name, tensor, trainable in _shared(module):
            if id(tensor) in first:
                aliases.append((name, first[id(tensor)]))
                continue
            if tensor.dtype not in _EXACT:
                raise AdmissionError(
                    f"{name} is {tensor.dtype}, which float32 cannot hold exactly; convert the model by .float()"
                )
            first[id(tensor)] = name
            slots.append(Slot(name, tuple(tensor.shape), tensor.dtype, start, trainable))
            start = slots[-1].stop
        if not any(slot.trainable for slot in slots):
            raise AdmissionError("the model has no trainable parameter; set requires_grad on what is to be trained")
        return cls(tuple(slots), tuple(aliases))

    @cached_property
    def length(self) -> int:
        """D, the number of elements of the vector."""
        return self.slots[-1].stop if self.slots else 0

    def gather(self, module: nn.Module) -> Vector:
        """A new vector with the module's present values; float32 `[D]`."""
        vector = torch.empty(self.length)
        tensors = _tensors(module)
        for slot in self.slots:
            vector[slot.start : slot.stop] = tensors[slot.name].detach().reshape(-1)
        return vector

    def scatter(self, vector: Vector, module: nn.Module) -> None:
        """Write the vector's values into the module's tensors, in place.

        Raises:
            ValueError: if the vector is not float32 of shape `[D]`.
        """
        self._check(vector)
        tensors = _tensors(module)
        for slot in self.slots:
            tensors[slot.name].detach().copy_(vector[slot.start : slot.stop].view(slot.shape))

    def views(self, vector: Vector) -> dict[str, torch.Tensor]:
        """The vector's parts by name, float32, sharing its memory."""
        self._check(vector)
        return {slot.name: vector[slot.start : slot.stop].view(slot.shape) for slot in self.slots}

    def state_dict(self, vector: Vector) -> dict[str, torch.Tensor]:
        """Named tensors in the module's own dtypes, tied names included; for `load_state_dict(..., strict=False)`.

        Exact: `gather` of a module that loaded it gives `vector` back, where the dtypes can hold the values. What is beside
        the model is left out.
        """
        views = self.views(vector)
        state = {slot.name: views[slot.name].to(slot.dtype, copy=True) for slot in self.slots if not slot.beside}
        state.update({alias: state[name].clone() for alias, name in self.aliases})
        return state

    def _check(self, vector: Vector) -> None:
        if vector.shape != (self.length,) or vector.dtype != torch.float32:
            raise ValueError(f"expected float32 [{self.length}], got {vector.dtype} {list(vector.shape)}")


def _shared(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """(name, tensor, trainable) of what is in the vector, in state-dict order."""
    tensors = _tensors(module)
    parameters = {id(parameter) for parameter in module.parameters()}
    for name in module.state_dict(keep_vars=True):
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if id(tensor) in parameters:
            if tensor.requires_grad:
                yield name, tensor, True
        elif tensor.is_floating_point() or tensor.is_complex():
            yield name, tensor, False


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named
