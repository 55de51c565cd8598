"""Who shares secrets with whom: how many neighbours, how many of them reveal a secret, and the graph itself.

A federation is small when everybody can be everybody's neighbour. Beyond that a random Harary graph does: clients in
random order on a ring, each joined to the k/2 before and the k/2 behind it. With k neighbours and threshold t, except
with probability 2**-security,

- curious server (it follows the protocol and remembers everything): nobody has t corrupt neighbours, and honest clients
  that stay are connected;
- lying server (it may tell every client something else): whatever a client's honest neighbours are told, t of them
  never reveal one of its two secrets while t neighbours, the corrupt ones once more among them, reveal the other. Honest
  neighbours answer once, so 2t shares would need 2t - k corrupt ones. The same number is needed to cut the ring in two
  places, since an honest client beside a gap insists on t living neighbours: hence one tail for both, over all pairs.

and, except with probability 2**-`FAILURE_BITS`, everybody keeps t neighbours when no more drop out than was said.

Corrupt clients and dropouts are fixed before the graph is drawn. The graph follows from all advertised keys (`order`), so
whoever controls keys and advertises last can try a few; each try costs what guessing costs everywhere: the security is
`security` bits for one try, one less for every doubling. A complete graph leaves nothing to try.

Source: Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead" (2020), §3; the tails are added up
here, where the paper bounds some.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from koinon.core.errors import AdmissionError
from koinon.core.types import ClientId

FAILURE_BITS = 20
"""A round in which as many drop out as was said fails with probability 2**-20 at most."""

COMPLETE_UP_TO = 50
"""Clients that are all each other's neighbours: it costs them milliseconds, and bears every dropout that can be borne."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How secrets are shared.

    Attributes:
        neighbours: k, to how many others a client deals shares.
        threshold: t, how many of these shares reveal a secret.
    """

    neighbours: int
    threshold: int


@cache
def against_curious_server(clients: int, corrupt: float, dropout: float, security: int = 40) -> Sizes:
    """Fewest neighbours that keep secrets from a server that follows the protocol, together with corrupt clients.

    Args:
        clients: n, >= 2.
        corrupt: Largest share of clients that tell the server all they know, in [0, 1).
        dropout: Largest share that falls silent, in [0, 1).
        security: Bits; secrets leak with probability 2**-security at most.

    Raises:
        AdmissionError: if nothing can bear so many corrupt clients and dropouts.
    """
    bad, gone = _counts(clients, corrupt, dropout)

    def threshold(k: int) -> int | None:
        cut = _cut_probability(clients, bad + gone, k)
        return _least(k, lambda t: clients * _tail(clients - 1, bad, k, t) + cut <= 2.0**-security)

    for k in _degrees(clients):
        t = threshold(k)
        if t is not None and clients * _tail(clients - 1, gone, k, k - t + 1) <= 2.0**-FAILURE_BITS:
            return Sizes(k, t)
    return _complete(clients, bad + 1, gone)


@cache
def against_lying_server(clients: int, corrupt: float, dropout: float, security: int = 40) -> Sizes:
    """Fewest neighbours that keep secrets from a server that may lie, together with corrupt clients; see above.

    Args:
        clients: n, >= 2.
        corrupt: Largest share of clients that do what the server wants, in [0, 1).
        dropout: Largest share that falls silent, in [0, 1).
        security: Bits; secrets leak with probability 2**-security at most.

    Raises:
        AdmissionError: if nothing can bear so many corrupt clients and dropouts.
    """
    bad, gone = _counts(clients, corrupt, dropout)
    cases = clients * (clients + 1) / 2  # every client, and every pair of gaps

    def threshold(k: int) -> int | None:
        return _least(k, lambda t: cases * _tail(clients - 1, bad, k, 2 * t - k) <= 2.0**-security)

    for k in _degrees(clients):
        t = threshold(k)
        if t is not None and clients * _tail(clients - 1, gone, k, k - t + 1) <= 2.0**-FAILURE_BITS:
            return Sizes(k, t)
    return _complete(clients, (clients - 1 + bad) // 2 + 1, gone)


def order(run: str, round: int, digests: Mapping[ClientId, bytes]) -> tuple[ClientId, ...]:
    """The ring: clients by a hash of their names under a seed that all advertised keys make together.

    Args:
        digests: SHA-256 of each client's advertised keys.
    """
    seed = hashlib.sha256(b"koinon.secure.graph.1")
    keys = (part for name in sorted(digests) for part in (name.encode(), digests[name]))
    for part in (run.encode(), str(round).encode(), *keys):
        seed.update(len(part).to_bytes(8, "little") + part)
    prefix = seed.digest()
    return tuple(sorted(digests, key=lambda name: hashlib.sha256(prefix + name.encode()).digest()))


def beside(ring: Sequence[ClientId], client: ClientId, neighbours: int) -> frozenset[ClientId]:
    """A client's neighbours on the ring: so many in all, half on either side; everybody else in a complete graph."""
    if neighbours >= len(ring) - 1:
        return frozenset(ring) - {client}
    place, half = ring.index(client), neighbours // 2
    return frozenset(ring[(place + away) % len(ring)] for away in range(-half, half + 1) if away)


def _degrees(clients: int) -> range:
    """How many neighbours a Harary graph may have that is worth its while."""
    return range(2, clients - 1, 2) if clients > COMPLETE_UP_TO else range(0)


def _counts(clients: int, corrupt: float, dropout: float) -> tuple[int, int]:
    if clients < 2:
        raise AdmissionError(f"a secret is shared among others; {clients} client has none, so at least 2 are needed")
    if not (0 <= corrupt < 1 and 0 <= dropout < 1):
        raise AdmissionError(
            f"corrupt={corrupt} and dropout={dropout} are shares of the clients, at least 0 and below 1"
        )
    return math.floor(corrupt * clients + 1e-9), math.floor(dropout * clients + 1e-9)


def _complete(clients: int, threshold: int, gone: int) -> Sizes:
    """Everybody is everybody's neighbour: certain, not likely."""
    threshold = max(threshold, min(2, clients - 1))  # one share alone would be the secret itself
    if clients - 1 - gone < threshold:
        raise AdmissionError(
            f"among {clients} clients a secret takes {threshold} shares of {clients - 1}, but with {gone} dropouts only "
            f"{clients - 1 - gone} stay; allow fewer corrupt clients or dropouts, or ask more clients"
        )
    return Sizes(clients - 1, threshold)


def _least(k: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest threshold from 2 on that holds, as all above it do; one share alone would be the secret itself."""
    low, high = 2, k + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low if low <= k else None


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Probability that `drawn` of a population, without replacement, hold `least` marked ones or more."""
    whole = _log_choose(population, drawn)
    counts = range(max(0, least, drawn - (population - marked)), min(marked, drawn) + 1)
    if least <= max(0, drawn - (population - marked)):
        return 1.0
    return math.fsum(
        math.exp(_log_choose(marked, count) + _log_choose(population - marked, drawn - count) - whole)
        for count in counts
    )


def _cut_probability(clients: int, removed: int, k: int) -> float:
    """Bound on the probability that removing so many at random leaves two parts: two gaps of k/2 places each."""
    if removed < k:
        return 0.0
    places = _log_choose(clients, 2) + _log_choose(clients - k, removed - k) - _log_choose(clients, removed)
    return math.exp(min(0.0, places))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
