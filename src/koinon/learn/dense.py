"""Many copies of a small dense model, each trained on its own data by plain gradient descent, at once.

Gradients are written out, layer by layer, in place of autograd's: each product is one call for all models, and it is
added to the weights as it is made, so that no gradient of weights ever lies in memory.
"""

from collections.abc import Iterable, Mapping, Sequence
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


@dataclass(frozen=True)
class Block:
    """Some steps' examples of every client.

    Attributes:
        inputs: Float32 `[clients, n, in]`.
        targets: Classes, int64 `[clients, n]`.
        batches: Examples of each step, n together.
        last: Whether no other block follows.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    batches: Sequence[int]
    last: bool


class Dense:
    """Memory for models of the same layers, used again and again: large fresh tensors cost page faults.

    The first layer is most of a model, and its inputs are known beforehand. So its products with a block of examples
    are taken at once, as if no step of the block changed it; each step then adds what the steps before it have changed,
    for which the overlaps of its inputs with theirs are enough; and the weights are changed once in a block. In the first
    block they are those of all models. Where it is the last as well, no model's own are ever made.

    Args:
        layers: Of every model.
        flattens: Whether examples may have any shape.
    """

    def __init__(self, layers: Sequence[Layer], flattens: bool) -> None:
        self.flattens = flattens
        self._layers = layers
        self._memory: dict[Slot, torch.Tensor] = {}
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

    @property
    def block(self) -> int:
        """Examples of a block: the overlaps of so many take an eighth of the first layer's multiplications."""
        hidden = self._layers[0].weight.shape[0]
        return self.inputs * hidden // (2 * (self.inputs + hidden))

    def examples(self, clients: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory for so many examples of each client: float32 `[clients, count, inputs]`, int64 `[clients, count]`."""
        if len(self._targets) < clients * count:
            self._inputs = torch.empty(clients * count, self.inputs)
            self._targets = torch.empty(clients * count, dtype=torch.int64)
        inputs, targets = self._inputs[: clients * count], self._targets[: clients * count]
        return inputs.view(clients, count, self.inputs), targets.view(clients, count)

    @torch.no_grad()
    def train(self, start: Vector, blocks: Iterable[Block], rate: float, out: torch.Tensor) -> torch.Tensor:
        """Train as many models as `out` has rows from `start`, which is not changed.

        Args:
            blocks: At least one.
            rate: Learning rate of w <- w - rate · g.
            out: Takes each model's way from `start`; float32 `[clients, D]`.

        Returns:
            Each model's mean loss in every step, float32 `[steps, clients]`.
        """
        first, learned = self._layers[0].weight, {slot: self._loaded(slot, start, len(out)) for slot in self._small}
        losses: list[torch.Tensor] = []
        for block in blocks:
            products = _products(learned.get(first), start[first.start : first.stop].view(first.shape), block.inputs)
            gradients, told = self._block(learned, products, block, rate)
            losses += told
            if block.last and first not in learned:
                way = out[:, first.start : first.stop].view(-1, *first.shape)
                way.baddbmm_(gradients.mT, block.inputs, beta=0, alpha=-rate)
                break
            if first not in learned:
                learned[first] = self._loaded(first, start, len(out))
            learned[first].baddbmm_(gradients.mT, block.inputs, alpha=-rate)
        for slot, values in learned.items():
            torch.sub(values.flatten(1), start[slot.start : slot.stop], out=out[:, slot.start : slot.stop])
        return torch.stack(losses)

    @property
    def _small(self) -> list[Slot]:
        """All but the first layer's weights."""
        slots = [slot for layer in self._layers for slot in (layer.weight, layer.bias) if slot is not None]
        return slots[1:]

    def _loaded(self, slot: Slot, start: Vector, clients: int) -> torch.Tensor:
        """Every model's weights `[clients, out, in]` or bias `[clients, 1, out]`, at the start."""
        shape = slot.shape if len(slot.shape) == 2 else (1, *slot.shape)
        if slot not in self._memory or len(self._memory[slot]) < clients:
            self._memory[slot] = torch.empty(clients, *shape)
        return self._memory[slot][:clients].copy_(start[slot.start : slot.stop].view(shape))

    def _block(
        self, learned: Mapping[Slot, torch.Tensor], products: torch.Tensor, block: Block, rate: float
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A block's steps; gradients by the first layer's outputs, float32 `[clients, n, out]`, and the steps' losses."""
        gradients, losses = torch.empty_like(products), []
        begin = 0
        for size in block.batches:
            step = slice(begin, begin + size)
            hidden = products[:, step]
            if begin:
                overlap = torch.bmm(block.inputs[:, step], block.inputs[:, :begin].mT)
                hidden = torch.baddbmm(hidden, overlap, gradients[:, :begin], alpha=-rate)
            gradients[:, step], loss = self._step(learned, hidden, block.targets[:, step], rate)
            losses.append(loss)
            begin += size
        return gradients, losses

    def _step(
        self, learned: Mapping[Slot, torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor, rate: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of every model, but of its first layer's weights.

        Args:
            hidden: The inputs times those weights, float32 `[clients, batch, out]`; written over.

        Returns:
            Gradients by the first layer's outputs, of the same shape, and the losses before the step, `[clients]`.
        """
        outputs: list[torch.Tensor] = []
        for layer in self._layers:
            product = torch.bmm(outputs[-1], learned[layer.weight].mT) if outputs else hidden
            product = product if layer.bias is None else product.add_(learned[layer.bias])
            outputs.append(product if layer.activation is None else _FORWARD[layer.activation](product))
        chosen = targets.unsqueeze(2)
        gradient = outputs[-1].log_softmax(2)
        losses = gradient.gather(2, chosen).mean((1, 2)).neg_()
        gradient.exp_().scatter_add_(2, chosen, torch.full(chosen.shape, -1.0)).div_(targets.shape[1])
        for place in reversed(range(len(self._layers))):
            layer = self._layers[place]
            if layer.activation is not None:
                gradient = _BACKWARD[layer.activation](gradient, outputs[place])
            if layer.bias is not None:
                learned[layer.bias].sub_(gradient.sum(1, keepdim=True), alpha=rate)
            if place:
                before = torch.bmm(gradient, learned[layer.weight])
                learned[layer.weight].baddbmm_(gradient.mT, outputs[place - 1], alpha=-rate)
                gradient = before
        return gradient, losses


def _products(own: torch.Tensor | None, shared: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Inputs `[clients, n, in]` times each client's own weights, or those that all have; `[clients, n, out]`."""
    if own is not None:
        return torch.bmm(inputs, own.mT)
    return (inputs.flatten(0, 1) @ shared.T).view(*inputs.shape[:2], -1)
