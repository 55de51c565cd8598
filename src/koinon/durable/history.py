"""What a run did, round by round: frozen values that are stored, shown and exported."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from koinon.core.network import Network
from koinon.core.types import ClientId
from koinon.data.devices import Clock
from koinon.durable.spending import Release

Outcome: TypeAlias = Literal["accepted", "refused", "declined", "failed", "absent"]
"""How a client's part in a round ended: refused by the server, declined by its owner's policy, failed in training."""

Values: TypeAlias = Mapping[str, float]


class Participation(msgspec.Struct, frozen=True):
    """One client's part in one round.

    Attributes:
        outcome: How it ended.
        reason: Why, unless accepted.
        examples: Examples it trained on.
        weight: Its weight in the mean.
        seconds: Time that its training took, as it says.
        bytes_up: Bytes it sent in the round, frames included; in simulation, what it would have sent.
        bytes_down: Bytes it was sent in the round, frames included.
    """

    client: ClientId
    outcome: Outcome
    reason: str = ""
    examples: int = 0
    weight: float = 0.0
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


class RoundRecord(msgspec.Struct, frozen=True):
    """One closed round and the model that came out of it.

    Attributes:
        round: Number, from 1.
        digest: SHA-256 of the model vector after the round, in hex.
        seconds: From opening to closing.
        participants: Everyone who was asked.
        training: Merged statistics of local training, over the accepted clients.
        metrics: Of the model after the round: on the central test set when there is one, otherwise `federated`.
        federated: Of the model after the round, merged over the held-out data of all clients that evaluated it.
        by_client: The same, client by client.
        releases: Noisy releases that the round made, durable before its model leaves.
        told: What the clients were told beside the model, such as an adaptive clip's norm.
        suspicion: What a rule that watches for liars knows of each client of the round: its suspicion, its score in the round,
            and 1 if it was left out.
        decision: What a rule that decides anew in every round did, and why.
        network_s: In simulation of a network, how long the bytes of its slowest accepted client would have been under way.
        clock_s: In simulation with a clock, at which virtual second since the run began it closed.
    """

    round: int
    digest: str
    seconds: float
    participants: tuple[Participation, ...]
    training: Values = {}
    metrics: Values = {}
    federated: Values = {}
    by_client: Mapping[ClientId, Values] = {}
    releases: tuple[Release, ...] = ()
    told: Values = {}
    suspicion: Mapping[ClientId, Values] = {}
    decision: str = ""
    network_s: float | None = None
    clock_s: float | None = None

    @property
    def bytes_up(self) -> int:
        """Bytes that all clients sent in the round."""
        return sum(participant.bytes_up for participant in self.participants)

    @property
    def bytes_down(self) -> int:
        """Bytes that all clients were sent."""
        return sum(participant.bytes_down for participant in self.participants)


class RunInfo(msgspec.Struct, frozen=True):
    """What a run is.

    Attributes:
        id: Its name and the name of its folder.
        app: The app it runs, as a person wrote it.
        definition: Digest of the federation's definition.
        rounds: Planned rounds.
        seed: Seed of everything that is not secret.
        parameters: D, the length of the model vector.
        created: When it began, ISO 8601, UTC.
        status: `"running"`, `"finished"` or `"aborted"`.
        runtime: `"simulation"` or `"network"`.
        clients: How many clients were asked for in simulation, None for the app's own number.
        delta: At which what was spent of privacy is told; None where nothing adds noise.
        secure: What the run's secure sum promises; empty where the server sees updates.
        network: What was simulated between clients and server, the same for all; None for nothing, or one for each.
        clock: Clients' devices and how long they were waited for, in simulation with a clock.
    """

    id: str
    app: str
    definition: str
    rounds: int
    seed: int
    parameters: int
    created: str
    status: Literal["running", "finished", "aborted"]
    runtime: Literal["simulation", "network"]
    clients: int | None = None
    delta: float | None = None
    network: Network | None = None
    clock: Clock | None = None
    secure: str = ""
