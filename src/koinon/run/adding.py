"""The updates of a round that nodes sent, as one: each of them seen, or only the sums of groups."""

from collections.abc import Sequence
from dataclasses import dataclass

from koinon.core.errors import ClientFailed, ProtocolViolation
from koinon.core.types import Vector
from koinon.durable.checkpoint import ServerState
from koinon.federation import Federation
from koinon.protocol.events import Close
from koinon.run.summing import Total, opened, together
from koinon.run.work import EncodedRows, aggregated, held, shared
from koinon.update.codec import OnDisk


@dataclass(frozen=True)
class Added:
    """A round's updates as one.

    Attributes:
        state: The server's, with what its rule remembers.
        total: The update, float32 `[D]`.
        weights: One for each client.
        totals: What is known of each group, where they were added up secretly.
        spoiled: Why nothing is known of any; empty otherwise.
    """

    state: ServerState
    total: Vector
    weights: Sequence[float]
    totals: Sequence[Total] = ()
    spoiled: str = ""


def added(federation: Federation, seed: int, job: Close, arrived: Sequence[OnDisk], state: ServerState) -> Added:
    """Add up what the accepted nodes sent.

    Args:
        arrived: What each of `job.accepted` sent.

    Raises:
        ClientFailed: if there are too few for the rule.
    """
    if federation.strategy.secure is not None:
        return _in_sums(federation, seed, job, arrived, state)
    known = shared(federation, seed, job.round)
    weights = [offer.weight for offer in job.offers]
    rows = held(federation, EncodedRows(federation.strategy.codec, arrived, weights, known))
    state, total = aggregated(federation, seed, job.round, state, job.accepted, rows)
    return Added(state, total, rows.weights)


def _in_sums(federation: Federation, seed: int, job: Close, arrived: Sequence[OnDisk], state: ServerState) -> Added:
    """The updates, of which only sums are known, as one; zeros if there is none."""
    masked, spoiled = dict(zip(job.accepted, arrived, strict=True)), job.failed
    try:
        totals = [opened(federation, opening, masked) for opening in job.openings]
        state, total, weights = together(federation, seed, job.round, state, totals)
    except (ProtocolViolation, ClientFailed) as error:
        totals, spoiled = [], str(error)
        state, total, weights = together(federation, seed, job.round, state, ())
    return Added(state, total, weights, totals, spoiled)
