"""One round whose updates are added up secretly, as `koinon.protocol.round` is one whose updates are seen.

An offered update is masked. It is accepted when the sum that it is in is durable, and all at once are.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from koinon.core.types import ClientId
from koinon.protocol import round as rounds
from koinon.protocol import sums
from koinon.protocol.events import Arrived, Close, Effect, Outcome, Persist, Send, Settled, Summed
from koinon.protocol.messages import Offer, Refused
from koinon.protocol.round import RoundState, Step
from koinon.protocol.sums import Moment, Sum
from koinon.secure.hosting import Host


def begun(host: Host, round: RoundState, attempt: int, now: float) -> RoundState:
    """A round of whose sum nothing is known yet."""
    return replace(round, sum=sums.begun(sums.wanting(host, round.needed), round.number, attempt, round.cohort, now))


def heard(round: RoundState, node: ClientId, data: bytes, moment: Moment) -> Step:
    """A node said something in the sum's own words."""
    if round.sum is None or round.closing:
        return round, ()
    return _went_on(round, sums.heard(round.sum, round.number, node, data, moment.now), moment)


def offered(round: RoundState, node: ClientId, offer: Offer) -> Step:
    """A node offers a masked update; one of an earlier attempt means nothing, one that is too late is refused."""
    if round.sum is None or round.closing:
        return rounds.offered(round, node, offer, None)
    size = sums.masked_bytes(round.sum, node)
    if size is not None:
        return rounds.offered(round, node, offer, size)
    if not round.sum.signing:
        return round, ()
    return round, (Send(node, Refused(offer.round, f"round {offer.round} is added up without it")),)


def arrived(round: RoundState, event: Arrived, moment: Moment) -> Step:
    """A masked update's bytes are complete."""
    sum, offer = round.sum, round.offers.get(event.node)
    if sum is None or round.closing or event.node in round.outcomes or event.round != round.number:
        return round, ()
    if offer is None or offer.update.digest != event.digest:
        return round, ()
    if event.fault is not None:
        round, effects = rounds.settled(round, event.node, "refused", event.fault)
        round, more = waited(round, moment)
        return round, (*effects, *more)
    return _went_on(round, sums.stored(sum, round.number, event.node, offer, moment.now), moment)


def returned(round: RoundState, node: ClientId, moment: Moment) -> Step:
    """A node of the cohort is here again."""
    if round.sum is None or round.closing:
        return round, ()
    return _went_on(round, sums.returned(round.sum, node, moment.now), moment)


def waited(round: RoundState, moment: Moment) -> Step:
    """Time has passed, or a node's part has ended: go on as far as the sum can, and close when it is over."""
    if round.sum is None or round.closing:
        return round, ()
    sum, effects = sums.timed(round.sum, round.number, round.outcomes.keys(), round.wanted, round.deadline, moment)
    round = replace(round, sum=sum)
    if not sum.hall.over or lost(round):
        return round, effects
    outcomes: dict[ClientId, Outcome] = dict.fromkeys(round.cohort, "refused")
    outcomes.update(round.outcomes)
    outcomes.update(dict.fromkeys(sum.survivors, "accepted"))
    round = replace(round, outcomes=outcomes, closing=True)
    offers = tuple(round.offers[node] for node in round.accepted)
    return round, (*effects, Close(round.number, round.accepted, offers, sum.openings, sum.failed))


def lost(round: RoundState) -> str:
    """Why there will be no sum, where it can be tried again; empty otherwise."""
    return "" if round.sum is None or round.sum.signing else round.sum.failed


def ended(round: RoundState, spoiled: str) -> tuple[RoundState, str]:
    """What a closed round came to, and why updates that do not count do not."""
    reason = spoiled or ("" if round.sum is None else round.sum.failed)
    if round.sum is None or not reason:
        return round, f"its masked update is not in the sum of round {round.number}"
    outcomes = {node: "refused" if outcome == "accepted" else outcome for node, outcome in round.outcomes.items()}
    return replace(round, outcomes=outcomes), f"no update counts in round {round.number}: {reason}"


def told(round: RoundState, spoiled: str) -> tuple[Effect, ...]:
    """Whose updates counted in a closed round: those hear it by the next task, or the end."""
    if round.sum is None:
        return ()
    round, reason = ended(round, spoiled)
    effects: list[Effect] = []
    for node in round.cohort:
        if round.outcomes[node] == "accepted":
            effects.append(Persist(Settled(round.number, node, "accepted", "", round.offers[node])))
        elif round.outcomes[node] == "refused":
            refused = Settled(round.number, node, "refused", reason)
            effects += [Persist(refused), Send(node, Refused(round.number, reason))]
    return tuple(effects)


def resumed(host: Host, round: RoundState, attempt: int, records: Sequence[Summed], moment: Moment) -> Step:
    """Go again through all that happened in the sum."""
    sum = sums.begun(sums.wanting(host, round.needed), round.number, attempt, round.cohort, moment.now)
    for record in records:
        sum = sums.repeated(sum, record, moment.now)
    offers = {record.node: record.offer for record in records if record.node is not None and record.offer is not None}
    return waited(replace(round, sum=sum, offers=offers), moment)


def _went_on(round: RoundState, step: tuple[Sum, tuple[Effect, ...]], moment: Moment) -> Step:
    sum, effects = step
    round, more = waited(replace(round, sum=sum), moment)
    return round, (*effects, *more)
