"""What a round's messages look like to somebody who only counts bytes: for simulation, where there are none."""

from collections.abc import Set
from typing import TypeAlias

from koinon.core.types import ClientId
from koinon.secure.cohort import Cohort
from koinon.secure.messages import (
    Advert,
    Agreed,
    Agreement,
    Delivery,
    Entry,
    Invitation,
    Message,
    Pairing,
    Parcel,
    PublicKeys,
    Reveal,
    Shares,
    Survivors,
)
from koinon.secure.shamir import SHARE_BYTES

Said: TypeAlias = tuple[tuple[Message, ...], tuple[Message, ...]]

_KEYS = PublicKeys(bytes(32), bytes(1184))
_SIGNATURE = bytes(64)


def messages(cohort: Cohort, number: int, name: ClientId, survivors: Set[ClientId]) -> Said:
    """What a client says in a round, but for its masked update, and what it is told: as long as the real messages, and empty.

    Everybody advertises keys and deals shares; the survivors answer in every later phase.

    Args:
        cohort: Its group.
        number: The round's, as the messages have it.
        name: The client's.
        survivors: Whose masked updates come.
    """
    near, advert = sorted(cohort.neighbours(name)), Advert(number, _KEYS, _KEYS, _SIGNATURE)
    entries = tuple(Entry(each, bytes(32), bytes(32), _SIGNATURE) for each in sorted(cohort.everybody))
    invitation = Invitation(number, entries, dict.fromkeys(near, advert), cohort.sizes.threshold)
    shares = Shares(number, {other: _parcel(name, other) for other in near}, bytes(32))
    delivery = Delivery(number, {other: _parcel(other, name) for other in near})
    if name not in survivors:
        return (advert, shares), (invitation, delivery)
    alive = [other for other in near if other in survivors]
    share = bytes(SHARE_BYTES)
    reveal = Reveal(number, dict.fromkeys(alive, share), {other: share for other in near if other not in survivors})
    agreement = Agreement(number, dict.fromkeys(alive[: cohort.sizes.threshold], _SIGNATURE))
    told = Survivors(number, tuple(sorted(survivors & cohort.members.keys())))
    return (advert, shares, Agreed(number, _SIGNATURE), reveal), (invitation, delivery, told, agreement)


def _parcel(sender: ClientId, receiver: ClientId) -> Parcel:
    pairing = Pairing(bytes(1088), bytes(48)) if sender < receiver else None
    return Parcel(bytes(1088), bytes(2 * SHARE_BYTES + 16), pairing)
