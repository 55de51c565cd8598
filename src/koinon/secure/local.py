"""A whole round in one process: every message and every key as on a network, or the same integers without them."""

import math
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.errors import AdmissionError, ClientFailed, ProtocolViolation, Unavailable
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.types import Vector, finite
from koinon.secure import client, groups, server, two_servers
from koinon.secure.cohort import Cohort
from koinon.secure.events import (
    Abort,
    Begin,
    ClientEvent,
    Contribute,
    Elapsed,
    Heard,
    Keep,
    Open,
    Received,
    Refuse,
    Say,
    Tell,
    Want,
)
from koinon.secure.keys import KeyPair
from koinon.secure.mask import Words
from koinon.secure.messages import Advert, Agreed, Entry, FromClient, Masked, Reveal, Shares, encode
from koinon.secure.ring import Ring
from koinon.secure.secret_shared import SecretShared
from koinon.secure.secure_sum import SecureSum
from koinon.secure.shamir import Entropy
from koinon.secure.unmasked import Opened

Phase: TypeAlias = Literal["advertise", "share", "mask", "agree", "unmask"]
Drop: TypeAlias = Mapping[str, Iterable[Hashable]]
"""Who falls silent, by the first phase in which nothing comes from them any more."""

PHASES: tuple[Phase, ...] = ("advertise", "share", "mask", "agree", "unmask")
"""A round's phases, in order; the updates of those who fall silent in the last two are in the sum."""

_RUN, _ROUND = "local", 1


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
class _Round:
    """Updates under the names that clients have here: their numbers, with zeros in front, so that text sorts as numbers."""

    scheme: SecureSum | SecretShared
    ids: Mapping[str, Hashable]
    updates: Mapping[str, Vector]
    weights: Mapping[str, float]
    tallies: Mapping[str, Sequence[float]]
    silent: Mapping[str, int]
    seed: int

    @classmethod
    def of(
        cls,
        scheme: SecureSum | SecretShared,
        updates: Mapping[Hashable, Vector] | Sequence[Vector] | torch.Tensor,
        drop: Drop | None,
        weights: Sequence[float] | None,
        tallies: Sequence[Sequence[float]] | None,
        seed: int,
    ) -> "_Round":
        ids = list(updates) if isinstance(updates, Mapping) else list(range(len(updates)))
        vectors = [updates[id] for id in ids]  # type: ignore[index,call-overload]
        if len({tuple(vector.shape) for vector in vectors}) > 1 or any(vector.ndim != 1 for vector in vectors):
            raise AdmissionError("updates are vectors [D], all of one length")
        scheme.admit(len(ids))
        names = [f"{place:06d}" for place in range(len(ids))]
        by_id = {_plain(id): name for id, name in zip(ids, names, strict=True)}
        silent: dict[str, int] = {}
        for phase, gone in (drop or {}).items():
            phases = ("mask", "seed") if isinstance(scheme, SecretShared) else PHASES
            if phase not in phases:
                raise AdmissionError(f"a secure sum has no phase {phase!r}; clients fall silent in {', '.join(phases)}")
            for id in gone:
                if _plain(id) not in by_id:
                    raise AdmissionError(f"{id!r} in drop is nobody's id; the updates are of {len(ids)} clients")
                name = by_id[_plain(id)]
                silent[name] = min(silent.get(name, len(phases)), phases.index(phase))
        told = [1.0] * len(ids) if weights is None else [float(weight) for weight in weights]
        counted = [()] * len(ids) if tallies is None else tallies
        if any(not 0 <= weight <= scheme.max_weight for weight in told):
            raise AdmissionError(f"weights lie from 0 to the scheme's max_weight={scheme.max_weight}")
        return cls(
            scheme,
            dict(zip(names, ids, strict=True)),
            {name: torch.as_tensor(vector, dtype=torch.float32) for name, vector in zip(names, vectors, strict=True)},
            dict(zip(names, told, strict=True)),
            dict(zip(names, counted, strict=True)),
            silent,
            seed,
        )

    @property
    def length(self) -> int:
        return len(next(iter(self.updates.values())))

    def speaks(self, name: str, phase: str) -> bool:
        return PHASES.index(phase) < self.silent.get(name, len(PHASES))

    def sends(self, name: str, half: str) -> bool:
        """Whether one of two servers hears of a client."""
        return ("mask", "seed").index(half) < self.silent.get(name, 2)

    def encoded(self, name: str, ring: Ring) -> Words:
        vector, weight = self.updates[name], self.weights[name]
        if not finite(vector):
            raise ClientFailed(f"the update of {self.ids[name]} is not finite; nothing of it can enter a sum")
        clipped = vector.clamp(-self.scheme.clip, self.scheme.clip)
        rng = generator(self.seed, "secure rounding", _ROUND, name)
        encoded = ring.encode(clipped if weight == 1 else clipped * weight, rng, (weight, *self.tallies[name]))
        return ring.blur(encoded, Noise.seeded(self.seed).of("ring", _ROUND, name)) if ring.noise else encoded

    def group(self, total: Words, ring: Ring, survivors: Sequence[str]) -> Group:
        vector, (weight, *tallies) = ring.decode(total, len(survivors))
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


def run_locally(
    scheme: SecureSum | SecretShared,
    updates: Mapping[Hashable, Vector] | Sequence[Vector] | torch.Tensor,
    drop: Drop | None = None,
    *,
    weights: Sequence[float] | None = None,
    tallies: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
    entropy: Entropy = os.urandom,
) -> Summed:
    """One round with everything that a network would see.

    Args:
        scheme: The secure sum.
        updates: Finite float32 vectors `[D]`: by id, or a sequence or tensor `[n, D]` whose ids are 0, 1, ...
        drop: Who falls silent, e.g. `{"share": [3], "mask": [1, 4], "unmask": [0]}`: from that phase on nothing comes from
            them. There are "advertise" (keys), "share", "mask", "agree" (on the survivors) and "unmask"; by two servers
            "mask" and, where only the first one hears of a client, "seed".
        weights: By update; 0 to the scheme's `max_weight`.
        tallies: By update, as many numbers as the scheme has tallies.
        seed: Of the stochastic rounding.
        entropy: Source of keys and shares.

    Raises:
        Unavailable: if too few answered; says how many did and how many are needed.
        AdmissionError: if the scheme cannot work among so many clients, or the arguments do not fit.
        ClientFailed: if an update is not finite.
    """
    played = _Round.of(scheme, updates, drop, weights, tallies, seed)
    if isinstance(scheme, SecretShared):
        return _by_two_servers(scheme, played, entropy)
    opened = faithful(scheme, played.length, _ROUND, list(played.ids), played.encoded, played.speaks, entropy)
    found = [played.group(each.total, each.ring, each.survivors) for each in opened.sums]
    survivors = [name for each in opened.sums for name in each.survivors]
    if not found:
        raise Unavailable(f"no secure sum: {'; '.join(opened.reasons)}")
    return played.summed(found, survivors, opened.sums[0].ring, max(opened.sent[name] for name in survivors))


@dataclass(frozen=True)
class Played:
    """What a round of real messages came to.

    Attributes:
        sums: Of each group that was opened.
        reasons: Why others were not.
        sent: Bytes that each client said.
    """

    sums: tuple[Opened, ...]
    reasons: tuple[str, ...]
    sent: Mapping[str, int]


def faithful(
    scheme: SecureSum,
    length: int,
    number: int,
    names: Sequence[str],
    encoded: Callable[[str, Ring], Words],
    speaks: Callable[[str, Phase], bool],
    entropy: Entropy = os.urandom,
) -> Played:
    """One round of real clients and a real server, every message and every key as on a network.

    Args:
        length: D, coordinates of an update.
        number: The round's.
        names: The clients.
        encoded: What a client that speaks when masked updates are due contributes in a ring.
        speaks: Whether anything comes from a client in a phase.
        entropy: Source of keys and shares.
    """
    identities = {name: Ed25519PrivateKey.from_private_bytes(entropy(32)) for name in names}
    trusted = {name: identity.public_key().public_bytes_raw() for name, identity in identities.items()}
    host = server.Host(_RUN, trusted, scheme, length)
    parties = {
        name: client.Party(_RUN, name, identity.sign, trusted, scheme, length) for name, identity in identities.items()
    }
    states = dict.fromkeys(parties, client.ClientState())
    hall = groups.HallState(server.ServerState(number, tuple(parties)))
    sums: list[Opened] = []
    reasons: list[str] = []
    mailbox: deque[Received] = deque()
    sent = dict.fromkeys(parties, 0)
    kept: dict[str, bytes] = {}

    def act(name: str, event: ClientEvent) -> None:
        states[name], effects = client.step(parties[name], states[name], event, entropy)
        for effect in effects:
            match effect:
                case Say(message):
                    if speaks(name, _phase(message)):
                        mailbox.append(Received(name, message))
                        sent[name] += len(encode(message))
                case Want(_, ring) if speaks(name, "mask"):
                    act(name, Contribute(encoded(name, ring)))

    for name in parties:
        act(name, Begin(number))
    while not hall.over:
        hall, effects = groups.step(host, hall, mailbox.popleft() if mailbox else Elapsed())
        for effect in effects:
            match effect:
                case Tell(name, message):
                    act(name, Heard(message))
                case Keep(name, data):
                    kept[name] = data
                case Abort(reason) | Refuse(_, reason):
                    reasons.append(reason)
                case Open(opening):
                    total = opening.ring.zeros()
                    for name in opening.survivors:
                        np.add(total, opening.ring.unpack(kept[name]), out=total)
                    sums.append(Opened(opening.ring, opening.apply(total), opening.survivors))
    return Played(tuple(sums), tuple(reasons), sent)


def ideal(
    scheme: SecureSum | SecretShared,
    updates: Mapping[Hashable, Vector] | Sequence[Vector] | torch.Tensor,
    drop: Drop | None = None,
    *,
    weights: Sequence[float] | None = None,
    tallies: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
) -> Summed:
    """The same integers as `run_locally` gives, without the cryptography: for simulation. Hides nothing.

    Who has how many neighbours left is decided on a graph of its own, drawn from `seed`: in a large federation at the brink,
    one of the two may succeed and the other refuse. In a complete graph both refuse alike.

    Args:
        scheme: The secure sum.
        updates: As of `run_locally`, and so are the others.

    Raises:
        Unavailable: if too few would have answered.
        AdmissionError: if the scheme cannot work among so many clients, or the arguments do not fit.
        ClientFailed: if an update is not finite.
    """
    played = _Round.of(scheme, updates, drop, weights, tallies, seed)
    if isinstance(scheme, SecretShared):
        return _by_one_server(scheme, played)
    left = {phase: [name for name in played.ids if played.speaks(name, phase)] for phase in PHASES}
    try:
        scheme.admit(len(left["advertise"]))
    except AdmissionError as error:
        raise Unavailable(f"no secure sum: {len(left['advertise'])} clients advertise: {error}") from None
    digests = {name: seed.to_bytes(32, "little", signed=True) for name in left["advertise"]}
    entries = tuple(Entry(name, bytes(32), digest, b"") for name, digest in digests.items())
    opened: list[Group] = []
    survivors: list[str] = []
    reasons: list[str] = []
    cohorts = Cohort.groups(_RUN, _ROUND, scheme, played.length, entries)
    for cohort in cohorts:
        core = cohort.core(set(left["share"]) & cohort.members.keys())
        answers = [core & set(left[phase]) for phase in PHASES[2:]]
        if len(answers[-1]) < scheme.minimum or cohort.fewest(core, answers[-1]) < cohort.sizes.threshold:
            reasons.append(
                f"{len(answers[-1])} of {len(cohort.members)} clients answer; each needs that "
                f"{cohort.sizes.threshold} of its {cohort.sizes.neighbours} neighbours do"
            )
            continue
        total, names = cohort.ring.zeros(), sorted(answers[0])
        for name in names:
            np.add(total, played.encoded(name, cohort.ring), out=total)
        opened.append(played.group(total, cohort.ring, names))
        survivors += names
    if not opened:
        raise Unavailable(f"no secure sum: {'; '.join(reasons)}")
    return played.summed(opened, survivors, cohorts[0].ring)


def _by_two_servers(scheme: SecretShared, played: _Round, entropy: Entropy) -> Summed:
    """A round by two servers, every message and every key as on a network."""
    ring = scheme.ring(len(played.ids), played.length)
    identities = {name: Ed25519PrivateKey.from_private_bytes(entropy(32)) for name in played.ids}
    trusted = {name: identity.public_key().public_bytes_raw() for name, identity in identities.items()}
    own = KeyPair.of(entropy(32))
    roles = two_servers.Roles(_RUN, trusted, own.public, ring, scheme.minimum)
    first, second = two_servers.First(roles, _ROUND), two_servers.Second(roles, _ROUND, own)
    sent = 0
    for name, identity in identities.items():
        halves = two_servers.contributed(roles, _ROUND, name, identity.sign, played.encoded(name, ring), entropy)
        first = first.heard(name, halves[0]) if played.sends(name, "mask") else first
        second = second.heard(name, halves[1]) if played.sends(name, "seed") else second
        sent = max(sent, sum(len(encode(half)) for half in halves))
    try:
        second, names, masks = second.asked(first.proposal())
    except ProtocolViolation as error:
        raise Unavailable(f"no secure sum: {error}") from None
    return played.summed([played.group(first.opened(names, masks), ring, names)], names, ring, sent)


def _by_one_server(scheme: SecretShared, played: _Round) -> Summed:
    """The same integers without the cryptography."""
    ring, names = (
        scheme.ring(len(played.ids), played.length),
        sorted(name for name in played.ids if played.sends(name, "seed")),
    )
    if len(names) < scheme.minimum:
        raise Unavailable(
            f"no secure sum: both servers have {len(names)} clients' halves; the sum of fewer than {scheme.minimum} is not opened"
        )
    total = ring.zeros()
    for name in names:
        np.add(total, played.encoded(name, ring), out=total)
    return played.summed([played.group(total, ring, names)], names, ring)


def _phase(message: FromClient) -> Phase:
    match message:
        case Advert():
            return "advertise"
        case Shares():
            return "share"
        case Masked():
            return "mask"
        case Agreed():
            return "agree"
        case Reveal():
            return "unmask"


def _plain(id: Hashable) -> Hashable:
    """Ids as people write them: 3 and "3" are the same client."""
    return str(id)
