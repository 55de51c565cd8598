"""What a data owner allows, in a file on the owner's machine; nothing that the server says can widen it.

# policy.toml
smallest_cohort = 3             # train only where at least this many nodes take part
definitions = ["9f3c…"]         # run only these federations, by digest; absent: any
most_rounds = 200               # at most this many rounds in one run; absent: any number
require_secure_sum = true       # refuse unless the server can only see sums of updates
require_dp = "client"           # noise on this node's own update; "record": on its records' gradients; "server"; true: any
most_norm = 1.0                 # refuse unless updates are clipped to this L2 norm; absent: any
most_epsilon = 3.0              # in all runs together, at `delta`; absent: any
delta = 1e-5

[peers]                         # with whom updates are added up, and nobody else; absent: whom this node meets first by a name
st-mary = "ed25519:…"
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from koinon.core import toml
from koinon.core.errors import PolicyRefused
from koinon.durable.spending import Release, guarantees
from koinon.federation import Federation
from koinon.protocol.messages import Digest, Name
from koinon.strategy.protection import Place
from koinon.wire.identity import parse_key


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's settings; the default allows everything.

    Attributes:
        smallest_cohort: Fewest nodes asked in a round, this one included, for which this one trains.
        definitions: SHA-256 digests of the federations that may run, or None for any; empty allows none.
        most_rounds: Most rounds of a run, or None for any number.
        require_secure_sum: Refuse unless the server can only see sums.
        require_dp: Refuse unless noise is added: anywhere (true), or by the server to sums (`"server"`), by the node to
            its update (`"client"`) or to its records' gradients (`"record"`).
        most_norm: Largest L2 norm that an update may have before noise, or None for any.
        most_epsilon: Most that may be spent of the privacy of this node's data, in all runs together, for each place
            where noise is added, or None for any.
        delta: At which `most_epsilon` is meant.
        peers: Names and public keys of those with whom updates are added up secretly, or None for whom this node meets first
            by a name.

    Raises:
        AdmissionError: if a key of `peers` is none.
    """

    smallest_cohort: Annotated[int, Meta(ge=1)] = 1
    definitions: tuple[Digest, ...] | None = None
    most_rounds: Annotated[int, Meta(ge=1)] | None = None
    require_secure_sum: bool = False
    require_dp: bool | Place = False
    most_norm: Annotated[float, Meta(gt=0)] | None = None
    most_epsilon: Annotated[float, Meta(gt=0)] | None = None
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    peers: dict[Name, str] | None = None

    def __post_init__(self) -> None:
        for key in (self.peers or {}).values():
            parse_key(key)

    @property
    def identities(self) -> dict[str, bytes] | None:
        """The public keys of `peers`."""
        return None if self.peers is None else {name: parse_key(key) for name, key in self.peers.items()}

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """The policy in a TOML file.

        Raises:
            Unavailable: if the file cannot be read.
            AdmissionError: if it is not TOML, or has an unknown setting or a value that the setting cannot take.
        """
        return toml.read(path, cls, "policy")

    def check_join(self, federation: Federation, rounds: int) -> None:
        """Whether the owner allows a run.

        Args:
            federation: The definition on the node's own disk, which the server's equals.
            rounds: Rounds that the run plans.

        Raises:
            PolicyRefused: naming the setting and what was asked.
        """
        if self.require_secure_sum and federation.strategy.secure is None:
            raise PolicyRefused("the owner's policy: require_secure_sum = true, and the run has no secure sum")
        if self.definitions is not None and federation.digest not in self.definitions:
            raise PolicyRefused(f"the owner's policy: definitions does not list {federation.digest}, which the run has")
        self._check_rounds(rounds, f"a run of {rounds} rounds")
        self._check_noise(federation)

    def check_task(self, round: int, cohort: int) -> None:
        """Whether the owner allows training in a round; the server may ask for other than it said at joining.

        Args:
            round: Number of the round, from 1.
            cohort: How many nodes were asked.

        Raises:
            PolicyRefused: naming the setting and what was asked.
        """
        if cohort < self.smallest_cohort:
            raise PolicyRefused(
                f"the owner's policy: smallest_cohort = {self.smallest_cohort} forbids a cohort of {cohort}"
            )
        self._check_rounds(round, f"round {round}")

    def check_spent(self, releases: Iterable[Release]) -> None:
        """Whether the owner allows that this is spent in all.

        Raises:
            PolicyRefused: naming the ceiling and what would be spent.
        """
        if self.most_epsilon is None:
            return
        for guarantee in guarantees(releases, self.delta).values():
            if guarantee.epsilon > self.most_epsilon:
                raise PolicyRefused(
                    f"the owner's policy: most_epsilon = {self.most_epsilon:g}, and with this round it would be {guarantee}"
                )

    def _check_noise(self, federation: Federation) -> None:
        places = [protection.place for protection in federation.protections]
        asked = self.require_dp
        if asked is not False and (not places if asked is True else asked not in places):
            offered = f"noise only from: {', '.join(places)}" if places else "no noise"
            raise PolicyRefused(
                f"the owner's policy: require_dp = {msgspec.json.encode(asked).decode()}; the run has {offered}"
            )
        if self.most_epsilon is not None and not places:
            raise PolicyRefused(f"the owner's policy: most_epsilon = {self.most_epsilon:g}, and the run has no noise")
        bound = federation.strategy.largest_norm
        if self.most_norm is not None and (bound is None or bound > self.most_norm):
            clipped = "does not clip" if bound is None else f"clips to {bound:g}"
            raise PolicyRefused(f"the owner's policy: most_norm = {self.most_norm:g}, and the run {clipped}")

    def _check_rounds(self, rounds: int, asked: str) -> None:
        if self.most_rounds is not None and rounds > self.most_rounds:
            raise PolicyRefused(f"the owner's policy: most_rounds = {self.most_rounds} forbids {asked}")
