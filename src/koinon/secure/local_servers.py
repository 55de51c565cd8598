"""A round by two servers in one process."""

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.errors import ProtocolViolation, Unavailable
from koinon.secure import two_servers
from koinon.secure.keys import KeyPair
from koinon.secure.messages import encode
from koinon.secure.playing import ROUND, RUN, Round, Summed
from koinon.secure.secret_shared import SecretShared
from koinon.secure.shamir import Entropy


def by_two_servers(scheme: SecretShared, played: Round, entropy: Entropy) -> Summed:
    """A round by two servers, every message and every key as on a network."""
    ring = scheme.ring(len(played.ids), played.length)
    identities = {name: Ed25519PrivateKey.from_private_bytes(entropy(32)) for name in played.ids}
    trusted = {name: identity.public_key().public_bytes_raw() for name, identity in identities.items()}
    own = KeyPair.of(entropy(32))
    roles = two_servers.Roles(RUN, trusted, own.public, ring, scheme.minimum)
    first, second = two_servers.First(roles, ROUND), two_servers.Second(roles, ROUND, own)
    sent = 0
    for name, identity in identities.items():
        halves = two_servers.contributed(roles, ROUND, name, identity.sign, played.encoded(name, ring), entropy)
        first = first.heard(name, halves[0]) if played.speaks(name, "mask") else first
        second = second.heard(name, halves[1]) if played.speaks(name, "seed") else second
        sent = max(sent, sum(len(encode(half)) for half in halves))
    try:
        second, names, masks = second.asked(first.proposal())
    except ProtocolViolation as error:
        raise Unavailable(f"no secure sum: {error}") from None
    return played.summed([played.group(first.opened(names, masks), ring, names)], names, ring, sent)


def by_one_server(scheme: SecretShared, played: Round) -> Summed:
    """The same integers without the cryptography."""
    ring, names = (
        scheme.ring(len(played.ids), played.length),
        sorted(name for name in played.ids if played.speaks(name, "seed")),
    )
    if len(names) < scheme.minimum:
        raise Unavailable(
            f"no secure sum: both servers have {len(names)} clients' halves; the sum of fewer than {scheme.minimum} is not opened"
        )
    total = ring.zeros()
    for name in names:
        np.add(total, played.encoded(name, ring), out=total)
    return played.summed([played.group(total, ring, names)], names, ring)
