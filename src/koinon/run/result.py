"""What a run came to, read from its folder."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from koinon.core.errors import Unavailable
from koinon.core.layout import Layout
from koinon.core.types import Vector
from koinon.durable import checkpoint
from koinon.durable.history import RoundRecord, RunInfo, Values
from koinon.durable.spending import guarantees
from koinon.durable.store import Store
from koinon.privacy.accountant import Guarantee
from koinon.strategy.protection import Place
from koinon.view import report


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        info: What it is.
        path: Its folder, with `report.html` and `model.safetensors`.
        history: Its closed rounds.
        layout: Which part of the model vector is which tensor.
    """

    info: RunInfo
    path: Path
    history: list[RoundRecord]
    layout: Layout

    @classmethod
    def read(cls, store: Store, layout: Layout) -> "Run":
        """The run in a store.

        Raises:
            Unavailable: if none has begun there.
        """
        info = store.info()
        if info is None:
            raise Unavailable(f"there is no run in {store.folder}")
        return cls(info, store.folder, store.history(), layout)

    @property
    def id(self) -> str:
        """Its name."""
        return self.info.id

    @cached_property
    def vector(self) -> Vector:
        """The model after the last closed round and what travels beside it, float32 `[D]`, as in `layout`."""
        path = self.path / "checkpoints" / f"round-{len(self.history):06d}.safetensors"
        return checkpoint.load(path).model

    @property
    def model(self) -> dict[str, torch.Tensor]:
        """The same as a state dict, for `load_state_dict(run.model, strict=False)`."""
        return self.layout.state_dict(self.vector)

    @property
    def digest(self) -> str:
        """SHA-256 of the model vector, in hex."""
        return self.history[-1].digest if self.history else checkpoint.digest(self.vector)

    @property
    def metrics(self) -> Values:
        """Of the last evaluation."""
        return next((record.metrics for record in reversed(self.history) if record.metrics), {})

    @cached_property
    def guarantees(self) -> dict[Place, Guarantee]:
        """What was spent of privacy, for each place where noise was added; empty without noise."""
        if self.info.delta is None:
            return {}
        return guarantees((release for record in self.history for release in record.releases), self.info.delta)

    @property
    def epsilon(self) -> float | None:
        """The first of `guarantees`: by the server's noise, else the clients' own, else their records'; None without noise."""
        return next((guarantee.epsilon for guarantee in self.guarantees.values()), None)

    @property
    def seconds(self) -> float:
        """How long its rounds took together."""
        return sum(record.seconds for record in self.history)

    @property
    def network_seconds(self) -> float | None:
        """How long its rounds would have waited for the network that was simulated; None where none was."""
        waited = [record.network_s for record in self.history if record.network_s is not None]
        return sum(waited) if waited else None

    @property
    def clock_seconds(self) -> float | None:
        """At which virtual second its last round closed; None where no clock was given."""
        return self.history[-1].clock_s if self.history else None

    def summary(self) -> dict[str, object]:
        """The run in one JSON object."""
        return {
            "id": self.id,
            "digest": self.digest,
            "rounds": len(self.history),
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "epsilon": self.epsilon,
            "guarantees": {place: str(guarantee) for place, guarantee in self.guarantees.items()},
            "bytes_up": sum(record.bytes_up for record in self.history),
            "bytes_down": sum(record.bytes_down for record in self.history),
            "seconds": round(self.seconds, 3),
            **({} if self.network_seconds is None else {"network_seconds": round(self.network_seconds, 3)}),
            **({} if self.clock_seconds is None else {"clock_seconds": round(self.clock_seconds, 3)}),
            "path": str(self.path),
        }

    def publish(self) -> "Run":
        """Write the report and the model for people and other programs."""
        report.write(self.path / "report.html", self.info, self.history)
        checkpoint.export(self.path / "model.safetensors", self.layout, self.vector)
        return self
