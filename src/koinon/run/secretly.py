"""What the clients of a simulated round made where updates are added up secretly: the server learns sums."""

from collections.abc import Sequence

import msgspec

from koinon.core.noise import Noise
from koinon.core.types import ClientId, Vector
from koinon.durable.checkpoint import ServerState
from koinon.durable.history import Participation
from koinon.durable.store import EVERYBODY, Evaluated
from koinon.evaluate.evaluation import of_evaluation, of_training
from koinon.federation import Federation
from koinon.protocol.messages import Accepted, Blob, Offer, Summing
from koinon.protocol.sums import number
from koinon.run.gathered import NOWHERE, Gathered
from koinon.run.summing import Total, contribution, merged, read, together
from koinon.run.traffic import Traffic, message_bytes
from koinon.run.work import Local
from koinon.secure.local import faithful
from koinon.secure.mask import Words
from koinon.secure.messages import encode
from koinon.secure.secure_sum import SecureSum
from koinon.secure.unmasked import Opened, UnmaskedSums
from koinon.update.codec import InMemory


class SecretlyGathered(Gathered):
    """A simulated round's updates, added up in the ring; the same integers as on a network, without the masks.

    Args:
        federation: What is trained.
        secure: Its secure sum.
        seed: Of everything that is drawn.
        round: Round number.
        cohort: Who was asked.
    """

    def __init__(
        self, federation: Federation, secure: SecureSum, seed: int, round: int, cohort: Sequence[ClientId]
    ) -> None:
        super().__init__(federation, seed, round)
        self._sums = UnmaskedSums(secure, self._length, cohort, seed, round)
        self._noise = Noise.seeded(seed)
        self._totals: list[Total] = []
        self._reasons: list[str] = []

    def offer(self, local: Local) -> Offer:
        """A masked update, of which nothing is told."""
        return Offer(self.round, Blob(NOWHERE, self._sums.ring.wire_bytes), 0.0, 0, {}, 0.0)

    def complete(self) -> bool:
        """Open the sums; whether there are as many as the rule needs."""
        found, self._reasons = self._opened()
        self._totals = [read(self._federation, each.ring, each.total, len(each.survivors)) for each in found]
        told = merged(self._totals)
        self.training, self.evaluated = dict(of_training(told)), dict(of_evaluation(told))
        survivors = frozenset(name for each in found for name in each.survivors)
        self.parts = [self._judged(part, survivors) for part in self.parts]
        return len(found) >= self._federation.strategy.least_rows

    def records(self) -> Sequence[Evaluated]:
        """Only the sum of what clients say is known."""
        return (Evaluated(self.round - 1, EVERYBODY, self.evaluated),) if self.evaluated else ()

    def shortage(self) -> str:
        """Why the round cannot close."""
        return f"round {self.round} has no secure sum: {'; '.join(self._reasons)}"

    def _counted(self, client: ClientId, local: Local, traffic: Traffic) -> None:
        self.parts.append(Participation(client, "accepted", bytes_up=traffic.up, bytes_down=traffic.down))
        update, ring = InMemory(local.encoded), self._sums.ring
        encoded = contribution(self._federation, self._seed, self._noise, self.round, client, ring, update, local)
        self._put(client, encoded)

    def _put(self, client: ClientId, encoded: Words) -> None:
        """Take what a client puts into the sum."""
        self._sums.add(client, encoded)

    def _opened(self) -> tuple[list[Opened], list[str]]:
        """The sums, and why there are no others."""
        return self._sums.opened()

    def _reduced(self, server: ServerState) -> tuple[ServerState, Vector]:
        server, total, self._weights = together(self._federation, self._seed, self.round, server, self._totals)
        return server, total

    def _judged(self, part: Participation, survivors: frozenset[ClientId]) -> Participation:
        """How a client's part ended, and the bytes of what it said and was told in the sum's own words."""
        said, told = self._sums.messages(part.client, number(self.round, 0))
        up = sum(message_bytes(Summing(encode(message)), node=True) for message in said)
        down = sum(message_bytes(Summing(encode(message)), node=False) for message in told)
        if part.outcome == "accepted":  # which a node then hears by the next task
            down -= message_bytes(Accepted(self.round), node=False)
        part = msgspec.structs.replace(part, bytes_up=part.bytes_up + up, bytes_down=part.bytes_down + down)
        if part.outcome != "accepted" or part.client in survivors:
            return part
        reason = f"its masked update is not in the sum of round {self.round}"
        return msgspec.structs.replace(part, outcome="refused", reason=reason)


class FaithfullyGathered(SecretlyGathered):
    """The same with all of the cryptography: real clients mask what was made, and a real server adds it up. Holds a masked
    update of everybody; the sum has the same bits."""

    def __init__(
        self, federation: Federation, secure: SecureSum, seed: int, round: int, cohort: Sequence[ClientId]
    ) -> None:
        super().__init__(federation, secure, seed, round, cohort)
        self._secure = secure
        self._cohort = list(cohort)
        self._made: dict[ClientId, Words] = {}

    def _put(self, client: ClientId, encoded: Words) -> None:
        self._made[client] = encoded
        super()._put(client, encoded)

    def _opened(self) -> tuple[list[Opened], list[str]]:
        played = faithful(
            self._secure,
            self._length,
            number(self.round, 0),
            self._cohort,
            lambda client, ring: self._made[client],
            lambda client, phase: phase in ("advertise", "share") or client in self._made,
        )
        return list(played.sums), list(played.reasons)


def gathered(federation: Federation, seed: int, round: int, cohort: Sequence[ClientId], with_masks: bool) -> Gathered:
    """What a simulated round's updates are taken by."""
    secure = federation.scheme
    if secure is None or not cohort:
        return Gathered(federation, seed, round)
    kind = FaithfullyGathered if with_masks else SecretlyGathered
    return kind(federation, secure, seed, round, cohort)
