"""Client id -> the device that it trains on, lazily: how fast it is, how it is connected, when it is there; and how long
a round waits for it."""

import csv
import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
import torch
from msgspec import Meta

from koinon.core.errors import AdmissionError, Unavailable
from koinon.core.network import NETWORKS, Network
from koinon.core.rng import generator
from koinon.core.types import ClientId

_REMEMBERED = 1 << 16  # devices; each takes a generator to draw

Rate: TypeAlias = Annotated[float, Meta(gt=0)]
Span: TypeAlias = Annotated[float, Meta(ge=0)]
Share: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What a client trains on.

    Attributes:
        examples_per_s: Examples that its training goes through in a second, > 0.
        network: How it is connected.
        dropout: Chance that it vanishes from a round in which it takes part, in [0, 1).
        on_s: Seconds for which it can be asked, of every `on_s + off_s`, > 0.
        off_s: Seconds for which it then cannot; 0: it always can.
        shift_s: How far it is in that course when a run begins.
    """

    examples_per_s: Rate
    network: Network
    dropout: Share = 0.0
    on_s: Rate = 86_400.0
    off_s: Span = 0.0
    shift_s: Span = 0.0

    def __post_init__(self) -> None:
        spans = (self.examples_per_s, self.on_s, self.off_s, self.shift_s)
        if not (all(map(math.isfinite, spans)) and self.examples_per_s > 0 and self.on_s > 0 and 0 <= self.dropout < 1):
            raise AdmissionError(f"a device needs finite speed and times above 0, and a dropout in [0, 1): {self}")

    def seconds(self, examples: int, bytes_up: int, bytes_down: int) -> float:
        """How long its part of a round takes: the model comes, so many examples are trained on, the update goes."""
        return self.network.seconds(bytes_up, bytes_down) + examples / self.examples_per_s

    def stays(self, at: float, seconds: float = 0.0) -> bool:
        """Whether it can be asked at this time of a run and is still there so many seconds later."""
        if not self.off_s:
            return True
        return (at + self.shift_s) % (self.on_s + self.off_s) + seconds < self.on_s


class Fleet(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Devices that differ by factors: speed and both bandwidths of each are the typical ones times exp(spread * N(0, 1)).

    With `spread=1` the fastest and the slowest hundredth are a factor of a hundred apart, as devices in the field are
    ("over two orders of magnitude": Huba et al., "Papaya", 2022). Where devices are not always there, each begins at a point of
    its course of its own.

    Attributes:
        typical: The median device.
        spread: Standard deviation of each factor's logarithm, >= 0.
        seed: Of what is drawn.
    """

    typical: Device
    spread: Span = 1.0
    seed: int = 0

    @classmethod
    def named(cls, name: str) -> "Fleet":
        """A fleet of `FLEETS`.

        Raises:
            AdmissionError: if there is none of that name.
        """
        if name not in FLEETS:
            raise AdmissionError(f"there is no fleet {name}; there are {', '.join(FLEETS)}")
        return FLEETS[name]

    def __call__(self, client: ClientId) -> Device:
        """A client's device: the same whenever it is asked for."""
        return _drawn(self, client)

    @property
    def intermittent(self) -> bool:
        """Whether some device is not always there."""
        return self.typical.off_s > 0


class Trace(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Devices that were measured.

    Attributes:
        devices: The devices.
        names: Whose each is; empty: each client has one of them, by a hash of its id.
    """

    devices: tuple[Device, ...]
    names: tuple[ClientId, ...] = ()

    def __post_init__(self) -> None:
        if not self.devices or (self.names and len(set(self.names)) != len(self.devices)):
            raise AdmissionError("a trace needs a device at least, and as many different names as devices, or none")

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Devices of a CSV file: a line for each, columns named as the attributes of `Device` and `Network`.

        `examples_per_s`, `up_mbit`, `down_mbit` and `round_trip_ms` are needed; `client` says whose it is.

        Raises:
            Unavailable: if the file cannot be read.
            AdmissionError: if it is no trace; names the line.
        """
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise Unavailable(f"cannot read the trace {path}: {error}; name a CSV file that you can read") from error
        named = [str(row["client"]) for row in rows if row.get("client")]
        if len(named) not in (0, len(rows)):
            raise AdmissionError(f"{path}: every line says whose device it is, or none does")
        return cls(devices=tuple(_device(path, number, row) for number, row in enumerate(rows, 2)), names=tuple(named))

    def __call__(self, client: ClientId) -> Device:
        """A client's device.

        Raises:
            AdmissionError: if the trace names clients, and not this one.
        """
        if not self.names:
            digest = hashlib.sha256(client.encode()).digest()
            return self.devices[int.from_bytes(digest[:8], "little") % len(self.devices)]
        places = _places(self.names)
        if client not in places:
            raise AdmissionError(f"the trace has no device of client {client}; add a line for it")
        return self.devices[places[client]]

    @property
    def intermittent(self) -> bool:
        """Whether some device is not always there."""
        return any(device.off_s for device in self.devices)


Devices: TypeAlias = Fleet | Trace

FLEETS: Mapping[str, Fleet] = {
    "silos": Fleet(typical=Device(examples_per_s=1000.0, network=NETWORKS["dsl"]), spread=0.25),
    "phones": Fleet(
        typical=Device(
            examples_per_s=50.0, network=Network(up_mbit=5.0, down_mbit=20.0, round_trip_ms=60.0), dropout=0.05
        )
    ),
}
"""Fleets by name: institutions that are much alike, and phones that are not."""


def devices_named(text: str) -> Devices:
    """A fleet of `FLEETS` by its name, or the trace in a CSV file.

    Raises:
        Unavailable: if there is neither such a name nor such a file.
        AdmissionError: if the file is no trace.
    """
    if text in FLEETS:
        return FLEETS[text]
    if not Path(text).exists():
        raise Unavailable(f"there are no devices {text}; write {', '.join(FLEETS)} or a trace's CSV file")
    return Trace.read(Path(text))


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """How a simulation tells the time.

    Attributes:
        devices: Each client's device.
        deadline_s: Seconds after which a round closes with the updates that are in; None: it waits for everybody.
        over_selection: Share of the cohort that need not answer, >= 0: with 0.2, a cohort of 12 closes at 10 updates. It means
            nothing where privacy counts on nobody knowing who takes part (`Poisson` and noise by the server).
    """

    devices: Devices
    deadline_s: float | None = None
    over_selection: float = 0.0

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not 0 < self.deadline_s < math.inf:
            raise AdmissionError(f"the deadline is seconds above 0, or None for none, not {self.deadline_s}")
        if not 0 <= self.over_selection < math.inf:
            raise AdmissionError(f"over-selection is a finite share >= 0, not {self.over_selection}")


@lru_cache(maxsize=_REMEMBERED)
def _drawn(fleet: Fleet, client: ClientId) -> Device:
    rng = generator(fleet.seed, "device", 0, client)
    speed, up, down = torch.randn(3, generator=rng, dtype=torch.float64).mul_(fleet.spread).exp_().tolist()
    typical, network = fleet.typical, fleet.typical.network
    replace = msgspec.structs.replace
    return replace(
        typical,
        examples_per_s=typical.examples_per_s * speed,
        network=replace(network, up_mbit=network.up_mbit * up, down_mbit=network.down_mbit * down),
        shift_s=float(torch.rand((), generator=rng, dtype=torch.float64)) * (typical.on_s + typical.off_s),
    )


@lru_cache(maxsize=4)
def _places(names: tuple[ClientId, ...]) -> Mapping[ClientId, int]:
    return {name: place for place, name in enumerate(names)}


def _device(path: Path, line: int, row: Mapping[str | None, str | None]) -> Device:
    own = {field.encode_name for field in msgspec.structs.fields(Device)} - {"network"}
    linked = {field.encode_name for field in msgspec.structs.fields(Network)}
    if None in row:
        raise AdmissionError(f"{path}, line {line}: more cells than columns")
    given = {name: text for name, text in row.items() if text not in (None, "") and name != "client"}
    if unknown := sorted(str(name) for name in given if name not in own | linked):
        raise AdmissionError(
            f"{path}, line {line}: there is no column {unknown[0]}; columns are client, {', '.join(sorted(own | linked))}"
        )
    network = {name: given[name] for name in linked & given.keys()}
    try:
        return msgspec.convert(
            {**{name: given[name] for name in own & given.keys()}, "network": network}, Device, strict=False
        )
    except (msgspec.ValidationError, AdmissionError) as error:
        raise AdmissionError(f"{path}, line {line}: {str(error).lower()}") from error
