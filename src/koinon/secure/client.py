"""A client's side of a secure sum, as a pure state machine; these rules hold whatever the server says.

Rules:
    - rounds go up: one that was begun is never begun again with other keys, and an earlier one never;
    - a cohort counts when every client in it is trusted and signed its keys for this round; its graph and threshold are the
      client's own computation;
    - one vector is masked in a round: a second, different one would use the masks twice;
    - a survivor set is signed once for an update, however often it is tried to add it up, and an update with noise of its own
      is masked once; the set names the client itself, at least `minimum` clients and a threshold of neighbours;
    - shares leave once, after a threshold of neighbours signed the same set: for a survivor that of its self-mask, for
      anybody else that of its mask key, never both;
    - what is received again is answered by the same bytes again.

The caller makes `dump(state)` durable before any effect leaves; then all of it holds across crashes as well. A message that
breaks the protocol raises `ProtocolViolation` and changes nothing.
"""

import hashlib
from collections.abc import Mapping
from typing import TypeAlias, assert_never

import msgspec

from koinon.core.errors import ClientFailed, ProtocolViolation, VerificationFailed
from koinon.core.types import ClientId
from koinon.secure import keys
from koinon.secure.cohort import Cohort
from koinon.secure.events import Begin, ClientEffect, ClientEvent, Contribute, Heard, Say, Want
from koinon.secure.keys import KeyPair
from koinon.secure.mask import Words, add_masks
from koinon.secure.messages import (
    Advert,
    Agreed,
    Agreement,
    Delivery,
    Invitation,
    Masked,
    Pairing,
    Parcel,
    Reveal,
    Shares,
    Survivors,
)
from koinon.secure.party import Party
from koinon.secure.secure_sum import SecureSum
from koinon.secure.shamir import SEED_BYTES, SHARE_BYTES, Entropy, shares


class Secrets(msgspec.Struct, frozen=True):
    """Three seeds of a round; they are forgotten when the shares have left."""

    channel: bytes
    mask: bytes
    self_mask: bytes


class Progress(msgspec.Struct, frozen=True):
    """How far a client is in a round: what it received and answered.

    Attributes:
        number: The round.
        update: Which of the client's updates it adds up.
        secrets: Until the shares have left.
        held: The neighbours' two shares, mask key and self-mask, in one; until the client's own have left.
        encoded: SHA-256 of the vector that was masked.
    """

    number: int
    update: int
    secrets: Secrets | None
    advert: Advert
    invitation: Invitation | None = None
    shares: Shares | None = None
    delivery: Delivery | None = None
    held: dict[str, bytes] = {}
    encoded: bytes | None = None
    survivors: Survivors | None = None
    agreed: Agreed | None = None
    reveal: Reveal | None = None


class ClientState(msgspec.Struct, frozen=True):
    """The round that was begun last, if any."""

    round: Progress | None = None


Step: TypeAlias = tuple[ClientState, tuple[ClientEffect, ...]]


def step(party: Party[SecureSum], state: ClientState, event: ClientEvent, entropy: Entropy) -> Step:
    """What happens next.

    Raises:
        ProtocolViolation: if the server asks for what the rules forbid.
        AdmissionError: if the cohort's size cannot work.
        ClientFailed: if a second vector is contributed to a round.
    """
    match event:
        case Begin(round, update):
            return _begun(party, state, round, round if update is None else update, entropy)
        case Heard(message):
            progress = _current(state, message.round)
            match message:
                case Invitation():
                    return _invited(party, progress, message, entropy)
                case Delivery():
                    return _delivered(party, progress, message)
                case Survivors():
                    return _told_survivors(party, progress, message)
                case Agreement():
                    return _agreed(party, progress, message)
                case _:
                    assert_never(message)
        case Contribute(encoded):
            return _contributed(party, state, encoded)
        case _:
            assert_never(event)


def dump(state: ClientState) -> bytes:
    """A state as bytes, secrets included."""
    return msgspec.msgpack.encode(state)


def load(data: bytes) -> ClientState:
    """The state that `dump` wrote.

    Raises:
        VerificationFailed: if it is damaged.
    """
    try:
        return msgspec.msgpack.decode(data, type=ClientState)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise VerificationFailed(
            "the stored state of a secure sum is damaged; the client cannot finish its round"
        ) from None


def _begun(party: Party[SecureSum], state: ClientState, round: int, update: int, entropy: Entropy) -> Step:
    last = 0 if state.round is None else state.round.number
    if state.round is not None and round == last:
        return state, (Say(state.round.advert),)
    if round <= last:
        raise ProtocolViolation(f"round {round} is over: this client has begun round {last}")
    before = state.round if state.round is not None and state.round.update == update else None
    if before is not None and before.agreed is not None:
        raise ProtocolViolation(
            f"this client has signed a survivor set for its update {update} already, in round {last}"
        )
    if before is not None and before.encoded is not None and party.scheme.noise:
        raise ProtocolViolation(
            f"this client's noise covers its update {update} once, and it was masked in round {last}"
        )
    secrets = Secrets(*(entropy(SEED_BYTES) for _ in range(3)))
    channel, mask = KeyPair.of(secrets.channel).public, KeyPair.of(secrets.mask).public
    signature = party.sign(keys.to_sign(party.run, round, party.name, keys.keys_digest(channel, mask)))
    advert = Advert(round, channel, mask, signature)
    return ClientState(Progress(round, update, secrets, advert)), (Say(advert),)


def _invited(party: Party[SecureSum], progress: Progress, message: Invitation, entropy: Entropy) -> Step:
    if progress.invitation is not None:
        if progress.shares is None or message != progress.invitation:
            raise ProtocolViolation(f"a second, different cohort for round {progress.number}")
        return ClientState(progress), (Say(progress.shares),)
    cohort, secrets = _checked_cohort(party, progress, message), _secrets(progress)
    neighbours = sorted(message.neighbours)
    points = [cohort.members[name] for name in neighbours]
    mask_shares = shares(secrets.mask, cohort.sizes.threshold, points, entropy)
    self_shares = shares(secrets.self_mask, cohort.sizes.threshold, points, entropy)
    channel, mask = KeyPair.of(secrets.channel), KeyPair.of(secrets.mask)
    parcels = {}
    for name, *both in zip(neighbours, mask_shares, self_shares, strict=True):
        advert = message.neighbours[name]
        pairing = keys.paired(cohort.setting, mask, name, advert) if party.name < name else None
        parcels[name] = keys.sealed(cohort.setting, channel, (party.name, name), advert, b"".join(both), pairing)
    said = Shares(progress.number, parcels, keys.commitment(secrets.self_mask))
    return _next(progress, invitation=message, shares=said), (Say(said),)


def _delivered(party: Party[SecureSum], progress: Progress, message: Delivery) -> Step:
    cohort, secrets, said = _cohort(party, progress), _secrets(progress), progress.shares
    if said is None:
        raise ProtocolViolation("parcels arrived before the client dealt its own")
    want = Want(progress.number, cohort.ring)
    if progress.delivery is not None:
        if message != progress.delivery:
            raise ProtocolViolation(f"a second, different delivery for round {progress.number}")
        return ClientState(progress), (want,)
    if not message.parcels.keys() <= said.parcels.keys():
        raise ProtocolViolation("the server delivers parcels from clients that are no neighbours")
    _enough(cohort, len(message.parcels), "neighbours dealt shares")
    channel, held = KeyPair.of(secrets.channel), {}
    for name, parcel in message.parcels.items():
        if (parcel.pairing is not None) is not (name < party.name):
            raise ProtocolViolation(f"the parcel from {name} does not say how to share a mask")
        advert = _neighbours(progress)[name]
        held[name] = keys.opened(cohort.setting, channel, (name, party.name), advert, parcel)
    return _next(progress, delivery=message, held=held), (want,)


def _contributed(party: Party[SecureSum], state: ClientState, encoded: Words) -> Step:
    progress = state.round
    if progress is None or progress.delivery is None or progress.shares is None:
        raise ClientFailed("nobody wants a vector for a secure sum now")
    cohort, secrets = _cohort(party, progress), _secrets(progress)
    digest = hashlib.sha256(cohort.ring.pack(encoded)).digest()
    if progress.encoded not in (None, digest):
        raise ClientFailed(f"a second, different vector for round {progress.number}: its masks would be used twice")
    own, seeds = KeyPair.of(secrets.mask), {}
    for name, parcel in progress.delivery.parcels.items():
        pairing = _pairing(party.name, name, parcel, progress.shares.parcels[name])
        seeds[name] = keys.pair_seed(cohort.setting, own, (party.name, name), _neighbours(progress)[name], pairing)
    plus = [seed for name, seed in seeds.items() if party.name < name]
    minus = [seed for name, seed in seeds.items() if party.name > name]
    plus.append(keys.self_mask_seed(cohort.setting, secrets.self_mask, party.name))
    masked = add_masks(encoded.copy(), plus, minus)
    return _next(progress, encoded=digest), (Say(Masked(progress.number, cohort.ring.pack(masked))),)


def _told_survivors(party: Party[SecureSum], progress: Progress, message: Survivors) -> Step:
    if progress.agreed is not None:
        if message != progress.survivors:
            raise ProtocolViolation(f"a second, different survivor set for round {progress.number}")
        return ClientState(progress), (Say(progress.agreed),)
    cohort, delivery = _cohort(party, progress), progress.delivery
    if delivery is None or progress.encoded is None:
        raise ProtocolViolation("the server names survivors before this client's masked update")
    named = set(message.names)
    if list(message.names) != sorted(named) or not named <= cohort.members.keys():
        raise ProtocolViolation("the survivors are no sorted part of the cohort")
    if party.name not in named:
        raise ProtocolViolation("the server says that this client did not survive, and asks it to help")
    near = named & _neighbours(progress).keys()
    if not near <= delivery.parcels.keys():
        raise ProtocolViolation("a neighbour is said to have survived, of whom no parcel came")
    if len(named) < party.scheme.minimum:
        raise ProtocolViolation(f"a sum of {len(named)} updates; this client helps with {party.scheme.minimum} or more")
    _enough(cohort, len(near), "neighbours survived")
    agreed = Agreed(progress.number, party.sign(cohort.to_agree(message.names)))
    return _next(progress, survivors=message, agreed=agreed), (Say(agreed),)


def _agreed(party: Party[SecureSum], progress: Progress, message: Agreement) -> Step:
    if progress.reveal is not None:
        return ClientState(progress), (Say(progress.reveal),)
    cohort, survivors = _cohort(party, progress), progress.survivors
    if survivors is None:
        raise ProtocolViolation("signatures arrived before there was a survivor set")
    named = set(survivors.names)
    if not message.signatures.keys() <= _neighbours(progress).keys() & named:
        raise ProtocolViolation("signatures of clients that are no surviving neighbours")
    signed = cohort.to_agree(survivors.names)
    for name, signature in message.signatures.items():
        keys.verified(party.trusted, name, signed, signature)
    _enough(cohort, len(message.signatures), "neighbours signed the same survivors")
    reveal = Reveal(
        progress.number,
        self_masks={name: both[SHARE_BYTES:] for name, both in progress.held.items() if name in named},
        mask_keys={name: both[:SHARE_BYTES] for name, both in progress.held.items() if name not in named},
    )
    return _next(progress, reveal=reveal, secrets=None, held={}), (Say(reveal),)


def _checked_cohort(party: Party[SecureSum], progress: Progress, message: Invitation) -> Cohort:
    party.check_size(message.cohort)
    cohort = Cohort.of(party.run, party.scheme, party.length, message, party.name)
    if cohort.everybody[party.name] != keys.keys_digest(progress.advert.channel, progress.advert.mask):
        raise ProtocolViolation("the cohort lacks this client's own keys")
    if message.threshold != cohort.sizes.threshold:
        raise ProtocolViolation(
            f"the server asks for threshold {message.threshold}; among {len(cohort.members)} clients it is {cohort.sizes.threshold}"
        )
    party.check_signatures(
        message.cohort, lambda entry: keys.to_sign(party.run, progress.number, entry.name, entry.keys)
    )
    if message.neighbours.keys() != cohort.neighbours(party.name):
        raise ProtocolViolation("the server names other neighbours than the cohort's keys decide")
    for name, advert in message.neighbours.items():
        if keys.keys_digest(advert.channel, advert.mask) != cohort.everybody[name]:
            raise ProtocolViolation(f"the keys said to be of {name} are not those that {name} signed")
    return cohort


def _current(state: ClientState, round: int) -> Progress:
    if state.round is None or state.round.number != round:
        at = "no round" if state.round is None else f"round {state.round.number}"
        raise ProtocolViolation(f"a message of round {round}; this client is in {at}")
    return state.round


def _cohort(party: Party[SecureSum], progress: Progress) -> Cohort:
    if progress.invitation is None:
        raise ProtocolViolation("a message came before the cohort was told")
    return Cohort.of(party.run, party.scheme, party.length, progress.invitation, party.name)


def _secrets(progress: Progress) -> Secrets:
    if progress.secrets is None:
        raise ProtocolViolation(f"this client's part in round {progress.number} is over: its shares have left")
    return progress.secrets


def _neighbours(progress: Progress) -> Mapping[str, Advert]:
    return {} if progress.invitation is None else progress.invitation.neighbours


def _pairing(name: ClientId, other: ClientId, theirs: Parcel, ours: Parcel) -> Pairing:
    pairing = ours.pairing if name < other else theirs.pairing
    if pairing is None:
        raise ProtocolViolation(f"nobody said how {name} and {other} share a mask")
    return pairing


def _enough(cohort: Cohort, count: int, what: str) -> None:
    if count < cohort.sizes.threshold:
        raise ProtocolViolation(f"{count} {what}, {cohort.sizes.threshold} of {cohort.sizes.neighbours} are needed")


def _next(progress: Progress, **changes: object) -> ClientState:
    return ClientState(msgspec.structs.replace(progress, **changes))
