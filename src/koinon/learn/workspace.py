"""The one module object that a `TorchLearner` trains, again and again, with a vector for a model."""

from dataclasses import dataclass

import torch
from torch import nn

from koinon.core.errors import AdmissionError, ClientFailed
from koinon.core.layout import Layout
from koinon.core.types import Vector


def arranged(module: nn.Module) -> nn.Module:
    """The module, in place, with its weights in the order in which it computes fastest.

    Convolutions and pooling of images are 1.0 to 1.8 times as fast with channels last, for all steps of a training of
    10 common shapes. Only code that looks at strides could notice, as `x.view(len(x), -1)` does; so this is done where
    there is none but torch's: to an `nn.Sequential` of modules of `torch.nn`. Whoever writes a module of another
    class can give it by `.to(memory_format=torch.channels_last)`.
    """
    containers = [part for part in module.modules() if next(part.children(), None) is not None]
    plain = all(type(part) is nn.Sequential for part in containers)
    known = all(type(part).__module__.startswith("torch.nn.modules.") for part in module.modules())
    if plain and known and any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return module


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A buffer's home, the tensor that belongs there, and the value to reset it to (None: it is in the vector)."""

    owner: nn.Module
    name: str
    tensor: torch.Tensor | None
    value: torch.Tensor | None


class Workspace:
    """A module whose float32 tensors are views of one flat buffer, so that loading a model is little more than one copy.

    What is not in the vector never passes from one training to the next: buffers are reset by `load`, and
    frozen parameters, which may be too large to copy, must not be written (`read` refuses).

    Attributes:
        module: The module; the workspace owns it.
        layout: What of it is in the vector.
        parameters: Its trainable parameters, in the layout's order.

    Raises:
        AdmissionError: if the module cannot be laid out, or is not on the CPU.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        tensors: dict[str, torch.Tensor] = {**parameters, **dict(module.named_buffers(remove_duplicate=False))}
        for name, tensor in tensors.items():
            if nn.parameter.is_lazy(tensor):
                raise AdmissionError(f"{name} has no shape yet; run one batch through the model first")
            if tensor.device.type != "cpu":
                raise AdmissionError(f"{name} is on {tensor.device}; give the model on the CPU, by .cpu()")
        self.module = module
        self.layout = Layout.of(module)
        self.parameters = [parameters[slot.name] for slot in self.layout.slots if slot.trainable]
        self._flat = self.layout.gather(module)
        views = self.layout.views(self._flat)
        self._apart = []  # (tensor, its view) of tensors of another type or order, which cannot share the buffer's memory
        for slot in self.layout.slots:
            tensor, view = tensors[slot.name], views[slot.name]
            if slot.dtype == torch.float32 and tensor.stride() == view.stride():
                tensor.data = view
            else:
                self._apart.append((tensor.detach(), view))
        held = {id(tensors[slot.name]) for slot in self.layout.slots}
        self._buffers = [
            _Buffer(owner, name, tensor, None if tensor is None or id(tensor) in held else tensor.clone())
            for owner in module.modules()
            for name, tensor in owner._buffers.items()
        ]
        self._frozen = [
            (name, parameter, parameter._version)
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad
        ]

    def __reduce__(self) -> tuple[type["Workspace"], tuple[nn.Module]]:
        """A copy in another process is made anew, since no serialisation keeps which tensors share memory."""
        self.load(self._flat.clone())
        return Workspace, (self.module,)

    def load(self, vector: Vector) -> None:
        """Make the module the model `vector`; everything else is as it was when the workspace was made.

        Raises:
            ValueError: if the vector is not float32 of shape `[D]`.
        """
        if vector.shape != self._flat.shape or vector.dtype != torch.float32:
            raise ValueError(f"expected float32 {list(self._flat.shape)}, got {vector.dtype} {list(vector.shape)}")
        self._flat.copy_(vector)
        for tensor, view in self._apart:
            tensor.copy_(view)
        for buffer in self._buffers:
            buffer.owner._buffers[buffer.name] = buffer.tensor  # a forward pass may have put another one there
            if buffer.tensor is not None and buffer.value is not None:
                buffer.tensor.copy_(buffer.value)

    @torch.no_grad()
    def read(self) -> Vector:
        """The module's present values, float32 `[D]`; the workspace's own memory, valid until the next `load`.

        Gradients are dropped.

        Raises:
            ClientFailed: if training wrote into a frozen parameter.
        """
        for name, parameter, version in self._frozen:
            if parameter._version != version:
                raise ClientFailed(f"training changed the frozen parameter {name}; register it as a buffer instead")
        for buffer in self._buffers:
            present = buffer.owner._buffers[buffer.name]
            if buffer.value is None and buffer.tensor is not None and present is not None:
                buffer.tensor.copy_(present)
        for tensor, view in self._apart:
            view.copy_(tensor)
        self.module.zero_grad()
        return self._flat
