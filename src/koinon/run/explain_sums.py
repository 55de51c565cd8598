"""What a secure sum hides from whom: said plainly, from the definition alone."""

from koinon.federation import Federation
from koinon.secure.cohort import Cohort
from koinon.secure.lengths import messages
from koinon.secure.messages import Entry, encode
from koinon.secure.secure_sum import SecureSum


def nodes(federation: Federation) -> int:
    """Of how many nodes in a round is spoken: those that the sampling says, or the fewest that can be added up."""
    cohort = federation.spec.cohort
    return federation.strategy.least if cohort is None else int(cohort)


def promised(federation: Federation) -> str:
    """What the secure sum of a definition promises; empty if it has none."""
    secure = federation.strategy.scheme
    return "" if secure is None else guarantee(secure, nodes(federation))


def guarantee(secure: SecureSum, count: int) -> str:
    """What is promised among so many nodes, and what it takes to break it."""
    group = min(secure.groups(count))
    sizes = secure.sizes(group)
    among = f"of each group of {group} or more" if secure.group_size is not None else "of a round"
    return (
        f"the server learns the sum {among} and no update, also if it lies and {secure.corrupt:.0%} of the nodes help it"
        if secure.server == "lying"
        else f"the server learns the sum {among} and no update, if it keeps to the protocol; {secure.corrupt:.0%} of the nodes "
        "may help it"
    ) + (
        f". No sum of fewer than {secure.minimum}; {secure.dropout:.0%} may fall silent. Among {group}: {sizes.neighbours} neighbours, "
        f"of whom {sizes.threshold} open a secret"
    )


def seen(federation: Federation, secure: SecureSum) -> str:
    """What the server learns."""
    summed = "the sum of each group's updates" if secure.group_size is not None else "the sum of a round's updates"
    told = "" if federation.protections else ", of their weights, examples and metrics"
    return (
        f"{summed}{told}, and who took part; no single update. From sums over few nodes, or of many rounds, something of single "
        "ones can be inferred: only noise bounds that"
    )


def bytes_up(federation: Federation, secure: SecureSum, count: int) -> int:
    """Bytes that a node sends among so many, whose names have eight letters: its masked update, keys and shares."""
    full = federation.scheme or secure
    names = [f"node-{place:03d}" for place in range(count)]
    entries = tuple(Entry(name, bytes(32), bytes(32), bytes(64)) for name in names)
    cohort = Cohort.groups("explain", 1, full, federation.learner.layout.length, entries)[0]
    said, _ = messages(cohort, 1, cohort.circle[0], frozenset(names))
    return cohort.ring.wire_bytes + sum(len(encode(message)) for message in said)
