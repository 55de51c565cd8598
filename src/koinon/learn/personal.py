"""Models of which a part is every client's own: it is trained on the client and never leaves it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import nn

from koinon.core.descent import Descent
from koinon.core.errors import AdmissionError
from koinon.core.layout import Layout, Slot
from koinon.core.statistics import Metrics
from koinon.core.types import Update, Vector
from koinon.data.dataset import Dataset
from koinon.learn.corrections import Correction, Memory
from koinon.learn.learner import Keeping, Learner, LocalTask, Stepping

Places: TypeAlias = tuple[tuple[Slot, int], ...]
"""Slots of the whole model, and where each begins in a vector of only them."""


@dataclass(frozen=True)
class Personal:
    """A learner some of whose layers are the client's own; a `koinon.learn.learner.Keeping`.

    The federation knows the shared layers only: what travels, is clipped, noised, masked and averaged is they. A client's
    own layers begin as the learner's under seed 0 and lie beside its node's journal. It judges a model with its own layers;
    nobody else can, so the server's evaluation is refused.

    - FedPer: `layers` are the last of the model, which are trained together with the others.
    - FedRep: the same, and `head_passes`: in a round the own layers are trained first, with the others at rest, then the
      others, with the own at rest.
    - FedBN: `layers=kn.batch_norms(model)`; normalisation stays local, with its statistics.

    Source: Arivazhagan et al., "Federated learning with personalization layers" (2019); Collins et al., "Exploiting shared
    representations for personalized federated learning" (2021), algorithm 1; Li et al., "FedBN: federated learning on
    non-IID features via local batch normalization" (2021).

    Attributes:
        within: The learner of the whole model.
        layers: Names in the model's state dict, with `*` for anything: `"4.*"` are all tensors of `model[4]`.
        head_passes: Trainings of the own layers before that of the shared ones, each of the learner's epochs, >= 0; 0: all
            layers are trained together.

    Raises:
        AdmissionError: if a name is nobody's, nothing or all would be shared, or the learner protects records, for whom only
            the update is accounted.
    """

    within: Learner
    layers: Sequence[str]
    head_passes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        slots = self.within.layout.slots
        for pattern in self.layers:
            if not any(fnmatchcase(slot.name, pattern) for slot in slots):
                names = ", ".join(slot.name for slot in slots[:6])
                raise AdmissionError(
                    f"no tensor is called {pattern}; there are {names}{', …' if len(slots) > 6 else ''}"
                )
        if not self._own or not any(slot.trainable for slot, _ in self._shared):
            raise AdmissionError(
                "Personal needs layers that are the client's own, and others that are shared and trained"
            )
        if self.head_passes < 0 or (self.head_passes and not any(slot.trainable for slot, _ in self._own)):
            raise AdmissionError("head_passes is 0, or of own layers that are trained; give a number >= 0")
        if isinstance(self.within, Keeping):
            raise AdmissionError(f"{type(self.within).__name__} keeps something already; give all own layers at once")
        if getattr(self.within, "release", lambda: None)() is not None:
            raise AdmissionError("DPSGD accounts for one training of what is sent; leave dp= out")

    @cached_property
    def layout(self) -> Layout:
        """Of the shared layers."""
        shared = tuple(replace(slot, start=start) for slot, start in self._shared)
        names = {slot.name for slot in shared}
        return Layout(shared, tuple(pair for pair in self.within.layout.aliases if pair[1] in names))

    @property
    def statistics(self) -> Metrics:
        """Those of the learner."""
        return getattr(self.within, "statistics", {})

    @property
    def keeps(self) -> int:
        """The own layers."""
        return 4 * (self.within.layout.length - self.layout.length)

    @property
    def descent(self) -> Descent | None:
        """The learner's."""
        return getattr(self.within, "descent", None)

    def steps(self, examples: int) -> int:
        """Of the shared layers: the learner's."""
        if not isinstance(self.within, Stepping):
            raise AdmissionError(f"{type(self.within).__name__} does not say how many steps it takes")
        return self.within.steps(examples)

    def initial(self, seed: int) -> Vector:
        """The shared layers before training."""
        return _picked(self.within.initial(seed), self._shared)

    def train(self, start: Vector, data: Dataset, task: LocalTask, rng: torch.Generator) -> Update:
        """Train both parts: the update moves the shared one, its memory is the own one."""
        whole = self._whole(start, task.memory)
        for _ in range(self.head_passes):
            delta = self.within.train(
                whole, data, replace(task, correction=self._parted(None, self._shared)), rng
            ).delta
            _put(whole, self._own, _picked(whole + delta, self._own))
        still = self._own if self.head_passes else ()
        update = self.within.train(whole, data, replace(task, correction=self._parted(task.correction, still)), rng)
        own = _picked(whole if still else whole + update.delta, self._own)
        return replace(update, delta=_picked(update.delta, self._shared), memory={"own": own})

    def evaluate(self, model: Vector, data: Dataset) -> Metrics:
        """Of the shared layers with own ones that nobody has trained."""
        return self.evaluate_own(model, data, {})

    def evaluate_own(self, model: Vector, data: Dataset, memory: Memory) -> Metrics:
        """Of the shared layers with the client's own."""
        return self.within.evaluate(self._whole(model, memory), data)

    @cached_property
    def _shared(self) -> Places:
        return _places(slot for slot in self.within.layout.slots if not self._owns(slot))

    @cached_property
    def _own(self) -> Places:
        return _places(slot for slot in self.within.layout.slots if self._owns(slot))

    def _owns(self, slot: Slot) -> bool:
        return any(fnmatchcase(slot.name, pattern) for pattern in self.layers)

    @cached_property
    def _first(self) -> Vector:
        """The own layers before a client's first training."""
        return _picked(self.within.initial(0), self._own)

    def _whole(self, shared: Vector, memory: Memory) -> Vector:
        """A new vector of the whole model."""
        whole = torch.empty(self.within.layout.length)
        _put(whole, self._shared, shared)
        _put(whole, self._own, memory.get("own", self._first))
        return whole

    def _parted(self, correction: Correction | None, still: Places) -> Correction | None:
        """What a strategy adds to the gradients of shared layers, with some layers at rest."""
        if correction is None and not still:
            return None
        trained = [slot for slot in self.within.layout.slots if slot.trainable]
        resting = {slot for slot, _ in still}
        shared = tuple(place for place, slot in enumerate(trained) if not self._owns(slot))
        return Parted(correction, shared, tuple(place for place, slot in enumerate(trained) if slot in resting))


@dataclass(frozen=True)
class Parted:
    """A correction of some parameters, while some are at rest; weight decay moves those all the same, in vain.

    Attributes:
        within: The correction, or None.
        corrected: Places of the parameters that it knows.
        still: Places of the parameters that get no gradient.
    """

    within: Correction | None
    corrected: Sequence[int]
    still: Sequence[int]

    def correct(
        self, gradients: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], start: Sequence[torch.Tensor]
    ) -> None:
        """Correct those, then drop the gradients of these, in place."""
        if self.within is not None:
            known = ([tensors[place] for place in self.corrected] for tensors in (gradients, parameters, start))
            self.within.correct(*known)
        for place in self.still:
            gradients[place].zero_()


def batch_norms(model: nn.Module) -> tuple[str, ...]:
    """Names of all tensors of a model's batch normalisation, for `Personal(learner, layers=…)`."""
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return tuple(f"{name}.*" for name in norms)


def _places(slots: Iterable[Slot]) -> Places:
    chosen = tuple(slots)
    return tuple(zip(chosen, accumulate((slot.stop - slot.start for slot in chosen), initial=0), strict=False))


def _picked(whole: Vector, places: Places) -> Vector:
    """A new vector of some slots of the whole model."""
    return torch.cat([whole[slot.start : slot.stop] for slot, _ in places])


def _put(whole: Vector, places: Places, part: Vector) -> None:
    """Write such a vector into the whole model, in place."""
    for slot, start in places:
        whole[slot.start : slot.stop] = part[start : start + slot.stop - slot.start]
