"""What a round in one process is given, and what it gives."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from koinon.core.errors import AdmissionError, ClientFailed
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.types import Vector, finite
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.mask import Words
from koinon.secure.ring import Ring
from koinon.secure.secret_shared import SecretShared
from koinon.secure.secure_sum import SecureSum

Scheme: TypeAlias = SecureSum | SecretShared | EncryptedSum
Updates: TypeAlias = Mapping[Hashable, Vector] | Sequence[Vector] | torch.Tensor
Drop: TypeAlias = Mapping[str, Iterable[Hashable]]
"""Who falls silent, by the first phase in which nothing comes from them any more."""

RUN, ROUND = "local", 1


@dataclass(frozen=True)
class Group:
    """What the server learns of one group.

    Attributes:
        sum: Of the survivors' weighted updates; float32 `[D]`.
        survivors: Their ids.
        weight: Sum of their weights.
        tallies: Sums of what else was told.
    """

    sum: Vector
    survivors: tuple[Hashable, ...]
    weight: float
    tallies: tuple[float, ...]


@dataclass(frozen=True)
class Summed:
    """What a round gives.

    Attributes:
        sum: Of the survivors' weighted updates; float32 `[D]`.
        survivors: Their ids, as they were given, in the order of the updates.
        weight: Sum of their weights.
        tallies: Sums of what else was told.
        ring: How updates were encoded; `sum` is within `len(survivors) * ring.resolution` of the exact sum.
        groups: The same for each group that was opened; one if the scheme has no groups.
        bytes_up: Most bytes that a survivor sent, in all messages of the round; 0 where there were no messages.
    """

    sum: Vector
    survivors: tuple[Hashable, ...]
    weight: float
    tallies: tuple[float, ...]
    ring: Ring
    groups: tuple[Group, ...]
    bytes_up: int = 0


@dataclass(frozen=True)
class Round:
    """Updates under the names that clients have here: their numbers, with zeros in front, so that text sorts as numbers."""

    scheme: Scheme
    ids: Mapping[str, Hashable]
    updates: Mapping[str, Vector]
    weights: Mapping[str, float]
    tallies: Mapping[str, Sequence[float]]
    silent: Mapping[str, int]
    seed: int
    mixing: Mapping[str, int]

    @classmethod
    def of(
        cls,
        scheme: Scheme,
        updates: Updates,
        drop: Drop | None,
        weights: Sequence[float] | None,
        tallies: Sequence[Sequence[float]] | None,
        seed: int,
        mixing: Sequence[int] | None = None,
    ) -> "Round":
        """Arguments that fit the scheme and each other.

        Raises:
            AdmissionError: if they do not.
        """
        ids = list(updates) if isinstance(updates, Mapping) else list(range(len(updates)))
        vectors = [updates[id] for id in ids]  # type: ignore[index,call-overload]
        if len({tuple(vector.shape) for vector in vectors}) > 1 or any(vector.ndim != 1 for vector in vectors):
            raise AdmissionError("updates are vectors [D], all of one length")
        scheme.admit(len(ids))
        names = [f"{place:06d}" for place in range(len(ids))]
        by_id = {_plain(id): name for id, name in zip(ids, names, strict=True)}
        silent: dict[str, int] = {}
        known = phases(scheme)
        for phase, gone in (drop or {}).items():
            if phase not in known:
                raise AdmissionError(f"a secure sum has no phase {phase!r}; clients fall silent in {', '.join(known)}")
            for id in gone:
                if _plain(id) not in by_id:
                    raise AdmissionError(f"{id!r} in drop is nobody's id; the updates are of {len(ids)} clients")
                name = by_id[_plain(id)]
                silent[name] = min(silent.get(name, len(known)), known.index(phase))
        told = [1.0] * len(ids) if weights is None else [float(weight) for weight in weights]
        counted = [()] * len(ids) if tallies is None else tallies
        if any(not 0 <= weight <= scheme.max_weight for weight in told):
            raise AdmissionError(f"weights lie from 0 to the scheme's max_weight={scheme.max_weight}")
        times = [1] * len(ids) if mixing is None else list(mixing)
        most = scheme.mixing if isinstance(scheme, EncryptedSum) else 1
        if any(not 1 <= each <= most for each in times):
            raise AdmissionError(
                f"ciphertexts are multiplied by whole numbers from 1 to the scheme's mixing, which is {most}"
            )
        return cls(
            scheme,
            dict(zip(names, ids, strict=True)),
            {name: torch.as_tensor(vector, dtype=torch.float32) for name, vector in zip(names, vectors, strict=True)},
            dict(zip(names, told, strict=True)),
            dict(zip(names, counted, strict=True)),
            silent,
            seed,
            dict(zip(names, times, strict=True)),
        )

    @property
    def length(self) -> int:
        """D, coordinates of an update."""
        return len(next(iter(self.updates.values())))

    def speaks(self, name: str, phase: str) -> bool:
        """Whether anything comes from a client in a phase."""
        known = phases(self.scheme)
        return known.index(phase) < self.silent.get(name, len(known))

    def encoded(self, name: str, ring: Ring) -> Words:
        """What a client puts into the sum."""
        vector, weight = self.updates[name], self.weights[name]
        if not finite(vector):
            raise ClientFailed(f"the update of {self.ids[name]} is not finite; nothing of it can enter a sum")
        clipped = vector.clamp(-self.scheme.clip, self.scheme.clip)
        rng = generator(self.seed, "secure rounding", ROUND, name)
        encoded = ring.encode(clipped if weight == 1 else clipped * weight, rng, (weight, *self.tallies[name]))
        return ring.blur(encoded, Noise.seeded(self.seed).of("ring", ROUND, name)) if ring.noise else encoded

    def group(self, total: Words, ring: Ring, survivors: Sequence[str]) -> Group:
        """What the sum of these clients' encoded updates says."""
        vector, (weight, *tallies) = ring.decode(total, sum(self.mixing[name] for name in survivors))
        return Group(vector, tuple(self.ids[name] for name in survivors), weight, tuple(tallies))

    def summed(self, found: Sequence[Group], survivors: Iterable[str], ring: Ring, bytes_up: int = 0) -> Summed:
        """All groups together."""
        vector = found[0].sum
        if len(found) > 1:
            vector = torch.stack([group.sum for group in found]).sum(0, dtype=torch.float64).to(torch.float32)
        tallies = tuple(map(math.fsum, zip(*(group.tallies for group in found), strict=True)))
        weight = math.fsum(group.weight for group in found)
        ids = tuple(self.ids[name] for name in sorted(survivors))
        return Summed(vector, ids, weight, tallies, ring, tuple(found), bytes_up)


def phases(scheme: Scheme) -> tuple[str, ...]:
    """A round's phases, in order; the updates of those who fall silent after "mask" are in the sum, but by two servers."""
    match scheme:
        case SecureSum():
            return "advertise", "share", "mask", "agree", "unmask"
        case SecretShared():
            return "mask", "seed"
        case EncryptedSum():
            return "advertise", "deal", "mask", "agree", "open"


def _plain(id: Hashable) -> Hashable:
    """Ids as people write them: 3 and "3" are the same client."""
    return str(id)
