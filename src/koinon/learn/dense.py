"""Many copies of a small dense model, each trained on its own data by plain gradient descent, at once.

Gradients are written out, layer by layer, in place of autograd's: each product is one call for all models, and a step
adds the gradient's product to the weights as it is made, so that no gradient ever lies in memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from koinon.core.layout import Layout, Slot
from koinon.core.types import Vector

_BACKWARD: dict[type[nn.Module], Any] = {
    nn.ReLU: lambda gradient, output: torch.ops.aten.threshold_backward(gradient, output, 0),
    nn.Tanh: torch.ops.aten.tanh_backward,
    nn.Sigmoid: torch.ops.aten.sigmoid_backward,
}
"""Activations, with (gradient by the output, output) -> gradient by the input."""

_FORWARD: dict[type[nn.Module], Any] = {nn.ReLU: torch.relu_, nn.Tanh: torch.tanh_, nn.Sigmoid: torch.sigmoid_}


@dataclass(frozen=True)
class Layer:
    """A linear map, and what follows it.

    Attributes:
        weight: Place of the weights `[out, in]` in the model's vector.
        bias: Place of the bias `[out]`, or None.
        activation: Kind of what follows, or None.
    """

    weight: Slot
    bias: Slot | None
    activation: type[nn.Module] | None = None


def dense_layers(module: nn.Module, layout: Layout, loss: object) -> tuple[Layer, ...]:
    """The layers of an `nn.Sequential` of `Linear` and activations, trained by cross entropy; empty for any other model."""
    parts = list(module) if type(module) is nn.Sequential else []
    if parts and type(parts[0]) is nn.Flatten and (parts[0].start_dim, parts[0].end_dim) == (1, -1):
        parts = parts[1:]
    slots = {slot.name: slot for slot in layout.slots}
    names = {part: name for name, part in module.named_children()}
    layers: list[Layer] = []
    for part in parts:
        if type(part) is nn.Linear and f"{names[part]}.weight" in slots:
            layers.append(Layer(slots[f"{names[part]}.weight"], slots.get(f"{names[part]}.bias")))
        elif type(part) in _FORWARD and layers and layers[-1].activation is None:
            layers[-1] = Layer(layers[-1].weight, layers[-1].bias, type(part))
        else:
            return ()
    known = sum(1 if layer.bias is None else 2 for layer in layers)
    plain = not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in module.modules())
    every = known == len(list(module.parameters())) == len(layout.slots) and not layout.aliases
    floats = all(slot.dtype == torch.float32 for slot in layout.slots)
    return tuple(layers) if plain and every and floats and _is_cross_entropy(loss) else ()


def _is_cross_entropy(loss: object) -> bool:
    if type(loss) is nn.CrossEntropyLoss:
        usual = loss.weight is None and loss.ignore_index < 0 and loss.reduction == "mean"
        return usual and loss.label_smoothing == 0
    return loss is F.cross_entropy


class Dense:
    """Memory for models of the same layers, used again and again: large fresh tensors cost page faults.

    Args:
        layers: Of every model.
        length: D, the length of a model's vector.
        flattens: Whether examples may have any shape.
    """

    def __init__(self, layers: Sequence[Layer], length: int, flattens: bool) -> None:
        self.flattens = flattens
        self._layers = layers
        self._length = length
        self._stacks: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._inputs = torch.empty(0)
        self._targets = torch.empty(0, dtype=torch.int64)

    @property
    def inputs(self) -> int:
        """How many numbers an example has."""
        return self._layers[0].weight.shape[1]

    @property
    def outputs(self) -> int:
        """How many classes there are."""
        return self._layers[-1].weight.shape[0]

    def examples(self, clients: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory for so many examples of each client: float32 `[clients, count, inputs]`, int64 `[clients, count]`."""
        if len(self._targets) < clients * count:
            self._inputs = torch.empty(clients * count, self.inputs)
            self._targets = torch.empty(clients * count, dtype=torch.int64)
        inputs, targets = self._inputs[: clients * count], self._targets[: clients * count]
        return inputs.view(clients, count, self.inputs), targets.view(clients, count)

    @torch.no_grad()
    def train(
        self, start: Vector, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], clients: int, rate: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Train so many models from `start`, which is not changed.

        Args:
            batches: For every step the inputs float32 `[clients, batch, inputs]` and the classes int64 `[clients, batch]`.
            rate: Learning rate of w <- w - rate · g.

        Returns:
            Each model's way from `start`, float32 `[clients, D]`, and its mean loss in every step `[steps, clients]`.
        """
        stacks = self._loaded(start, clients)
        losses = [self._step(stacks, inputs, targets, rate) for inputs, targets in batches]
        delta = torch.empty(clients, self._length)
        for layer, stack in zip(self._layers, stacks, strict=True):
            for slot, values in zip((layer.weight, layer.bias), stack, strict=True):
                if slot is not None and values is not None:
                    first, part = start[slot.start : slot.stop], delta[:, slot.start : slot.stop]
                    torch.sub(values.view(clients, -1), first, out=part)
        return delta, torch.stack(losses)

    def _loaded(self, start: Vector, clients: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Every layer's weights `[clients, out, in]` and biases `[clients, 1, out]`, all at the start."""
        if not self._stacks or len(self._stacks[0][0]) < clients:
            self._stacks = [
                (
                    torch.empty(clients, *layer.weight.shape),
                    None if layer.bias is None else torch.empty(clients, 1, *layer.bias.shape),
                )
                for layer in self._layers
            ]
        loaded = [(weight[:clients], None if bias is None else bias[:clients]) for weight, bias in self._stacks]
        for layer, (weight, bias) in zip(self._layers, loaded, strict=True):
            weight.copy_(start[layer.weight.start : layer.weight.stop].view(layer.weight.shape))
            if layer.bias is not None and bias is not None:
                bias.copy_(start[layer.bias.start : layer.bias.stop])
        return loaded

    def _step(
        self,
        stacks: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
        inputs: torch.Tensor,
        targets: torch.Tensor,
        rate: float,
    ) -> torch.Tensor:
        """One step of every model; the losses before it, `[clients]`."""
        outputs = [inputs]
        for layer, (weight, bias) in zip(self._layers, stacks, strict=True):
            product = torch.bmm(outputs[-1], weight.mT) if bias is None else torch.baddbmm(bias, outputs[-1], weight.mT)
            outputs.append(product if layer.activation is None else _FORWARD[layer.activation](product))
        chosen = targets.unsqueeze(2)
        gradient = outputs[-1].log_softmax(2)
        losses = gradient.gather(2, chosen).mean((1, 2)).neg_()
        gradient.exp_().scatter_add_(2, chosen, torch.full(chosen.shape, -1.0)).div_(targets.shape[1])
        for place in reversed(range(len(self._layers))):
            activation, (weight, bias) = self._layers[place].activation, stacks[place]
            if activation is not None:
                gradient = _BACKWARD[activation](gradient, outputs[place + 1])
            before = torch.bmm(gradient, weight) if place else gradient
            weight.baddbmm_(gradient.mT, outputs[place], alpha=-rate)
            if bias is not None:
                bias.sub_(gradient.sum(1, keepdim=True), alpha=rate)
            gradient = before
        return losses
