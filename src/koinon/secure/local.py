"""A whole round in one process: every message and every key as on a network, or the same integers without them."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.errors import AdmissionError, Unavailable
from koinon.secure import client, groups, server
from koinon.secure.cohort import Cohort
from koinon.secure.encrypted.local import by_encryption, in_clear
from koinon.secure.encrypted_sum import EncryptedSum
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
from koinon.secure.local_servers import by_one_server, by_two_servers
from koinon.secure.mask import Words
from koinon.secure.messages import Advert, Agreed, Entry, FromClient, Masked, Reveal, Shares, encode
from koinon.secure.party import Party
from koinon.secure.playing import ROUND, RUN, Drop, Group, Round, Scheme, Summed, Updates
from koinon.secure.ring import Ring
from koinon.secure.secret_shared import SecretShared
from koinon.secure.secure_sum import SecureSum
from koinon.secure.shamir import Entropy
from koinon.secure.unmasked import Opened

Phase: TypeAlias = Literal["advertise", "share", "mask", "agree", "unmask"]
PHASES: tuple[Phase, ...] = ("advertise", "share", "mask", "agree", "unmask")
"""A round's phases, in order; the updates of those who fall silent in the last two are in the sum."""


def run_locally(
    scheme: Scheme,
    updates: Updates,
    drop: Drop | None = None,
    *,
    weights: Sequence[float] | None = None,
    tallies: Sequence[Sequence[float]] | None = None,
    mixing: Sequence[int] | None = None,
    seed: int = 0,
    entropy: Entropy = os.urandom,
) -> Summed:
    """One round with everything that a network would see.

    Args:
        scheme: The secure sum.
        updates: Finite float32 vectors `[D]`: by id, or a sequence or tensor `[n, D]` whose ids are 0, 1, ...
        drop: Who falls silent, e.g. `{"share": [3], "mask": [1, 4], "unmask": [0]}`: from that phase on nothing comes from
            them. There are "advertise" (keys), "share", "mask", "agree" (on the survivors) and "unmask"; by two servers
            "mask" and, where only the first one hears of a client, "seed"; of an `EncryptedSum` "advertise", "deal" (the
            round's key), "mask", "agree" and "open".
        weights: By update; 0 to the scheme's `max_weight`.
        tallies: By update, as many numbers as the scheme has tallies.
        mixing: By update, the whole number that the server multiplies its ciphertext by; 1 to the `mixing` of an `EncryptedSum`.
        seed: Of the stochastic rounding.
        entropy: Source of keys and shares.

    Raises:
        Unavailable: if too few answered; says how many did and how many are needed.
        AdmissionError: if the scheme cannot work among so many clients, or the arguments do not fit.
        ClientFailed: if an update is not finite.
    """
    played = Round.of(scheme, updates, drop, weights, tallies, seed, mixing)
    if isinstance(scheme, SecretShared):
        return by_two_servers(scheme, played, entropy)
    if isinstance(scheme, EncryptedSum):
        return by_encryption(scheme, played, entropy)
    opened = faithful(scheme, played.length, ROUND, list(played.ids), played.encoded, played.speaks, entropy)
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
    host = server.Host(RUN, trusted, scheme, length)
    parties = {name: Party(RUN, name, identity.sign, trusted, scheme, length) for name, identity in identities.items()}
    states = dict.fromkeys(parties, client.ClientState())
    hall = groups.HallState(server.ServerState(number, tuple(parties)))
    sums: list[Opened] = []
    reasons: list[str] = []
    mailbox: deque[Received[FromClient]] = deque()
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
    scheme: Scheme,
    updates: Updates,
    drop: Drop | None = None,
    *,
    weights: Sequence[float] | None = None,
    tallies: Sequence[Sequence[float]] | None = None,
    mixing: Sequence[int] | None = None,
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
    played = Round.of(scheme, updates, drop, weights, tallies, seed, mixing)
    if isinstance(scheme, SecretShared):
        return by_one_server(scheme, played)
    if isinstance(scheme, EncryptedSum):
        return in_clear(scheme, played)
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
    cohorts = Cohort.groups(RUN, ROUND, scheme, played.length, entries)
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
