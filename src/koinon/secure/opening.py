"""Which masks are left over in the sum of the survivors' masked updates, from the shares that they revealed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from koinon.core.errors import ProtocolViolation
from koinon.core.types import ClientId
from koinon.secure import keys
from koinon.secure.cohort import Cohort
from koinon.secure.keys import KeyPair
from koinon.secure.mask import Words, add_masks
from koinon.secure.messages import Advert, Reveal, Shares
from koinon.secure.ring import Ring
from koinon.secure.shamir import combined


@dataclass(frozen=True, slots=True)
class Opening:
    """What to do with the sum.

    Attributes:
        ring: What their updates are encoded in.
        survivors: Whose masked updates it is of, by sorted name.
        plus: Seeds of masks to add.
        minus: Seeds of masks to take away.
    """

    ring: Ring
    survivors: tuple[ClientId, ...]
    plus: tuple[bytes, ...] = field(repr=False)
    minus: tuple[bytes, ...] = field(repr=False)

    def apply(self, total: Words) -> Words:
        """The sum of the survivors' encoded updates from that of their masked ones, in place."""
        return add_masks(total, self.plus, self.minus)


def opened(
    cohort: Cohort,
    adverts: Mapping[ClientId, Advert],
    shares: Mapping[ClientId, Shares],
    survivors: tuple[ClientId, ...],
    reveals: Mapping[ClientId, Reveal],
) -> Opening:
    """The leftover masks: every survivor's own, and those that survivors share with clients that fell silent.

    Raises:
        ProtocolViolation: if a seed that was dealt or revealed is not the one that was advertised.
    """
    plus: list[bytes] = []
    minus: list[bytes] = []
    alive = frozenset(survivors)
    for dealer, dealt in shares.items():
        near = cohort.neighbours(dealer)
        if dealer in alive:
            seed = _seed(cohort, dealer, {name: reveals[name].self_masks[dealer] for name in near & reveals.keys()})
            if keys.commitment(seed) != dealt.commitment:
                raise ProtocolViolation(f"the shares of {dealer}'s self-mask do not give what {dealer} committed to")
            minus.append(keys.self_mask_seed(cohort.setting, seed, dealer))
            continue
        seed = _seed(cohort, dealer, {name: reveals[name].mask_keys[dealer] for name in near & reveals.keys()})
        own = KeyPair.of(seed)
        if own.public != adverts[dealer].mask:
            raise ProtocolViolation(f"the shares of {dealer}'s mask key do not give the key that {dealer} advertised")
        for name in sorted(near & alive):
            pairing = shares[min(name, dealer)].parcels[max(name, dealer)].pairing
            if pairing is None:
                raise ProtocolViolation(f"nobody said how {name} and {dealer} share a mask")
            mask = keys.pair_seed(cohort.setting, own, (dealer, name), adverts[name], pairing)
            (minus if name < dealer else plus).append(mask)  # the first of a pair by name added it
    return Opening(cohort.ring, survivors, tuple(plus), tuple(minus))


def _seed(cohort: Cohort, dealer: ClientId, held: Mapping[ClientId, bytes]) -> bytes:
    """A dealer's seed from the shares of its neighbours; the first by name suffice, and are often the same for many."""
    chosen = sorted(held)[: cohort.sizes.threshold]
    if len(chosen) < cohort.sizes.threshold:
        raise ProtocolViolation(f"{len(chosen)} shares of {dealer}, {cohort.sizes.threshold} are needed")
    return combined({cohort.members[name]: held[name] for name in chosen})
