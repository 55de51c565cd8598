"""What a data owner allows, in a file on the owner's machine; nothing that the server says can widen it.

# policy.toml
smallest_cohort = 3             # train only where at least this many nodes take part
definitions = ["9f3c…"]         # run only these federations, by digest; absent: any
most_rounds = 200               # at most this many rounds in one run; absent: any number
require_secure_sum = true       # refuse until the server can only see sums of updates
require_dp = true               # refuse until updates carry differential privacy
"""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from koinon.core.errors import AdmissionError, PolicyRefused, Unavailable
from koinon.protocol.messages import Digest


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's settings; the default allows everything.

    Attributes:
        smallest_cohort: Fewest nodes asked in a round, this one included, for which this one trains.
        definitions: SHA-256 digests of the federations that may run, or None for any; empty allows none.
        most_rounds: Most rounds of a run, or None for any number.
        require_secure_sum: Refuse unless the server can only see sums. No server offers this yet: all is refused.
        require_dp: Refuse unless updates carry differential privacy. No server offers this yet: all is refused.
    """

    smallest_cohort: Annotated[int, Meta(ge=1)] = 1
    definitions: tuple[Digest, ...] | None = None
    most_rounds: Annotated[int, Meta(ge=1)] | None = None
    require_secure_sum: bool = False
    require_dp: bool = False

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """The policy in a TOML file.

        Raises:
            Unavailable: if the file cannot be read.
            AdmissionError: if it is not TOML, or has an unknown setting or a value that the setting cannot take.
        """
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise Unavailable(
                f"cannot read the policy {path}: {error.strerror}; name a file that you can read"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise AdmissionError(f"{path} is not valid TOML: {error}") from error
        return cls(**{name: _checked(path, name, value) for name, value in settings.items()})

    def check_join(self, definition: str, rounds: int) -> None:
        """Whether the owner allows a run.

        Args:
            definition: Digest of the federation's definition.
            rounds: Rounds that the run plans.

        Raises:
            PolicyRefused: naming the setting and what was asked.
        """
        self._check_protection()
        if self.definitions is not None and definition not in self.definitions:
            raise PolicyRefused(f"the owner's policy: definitions does not list {definition}, which the run has")
        self._check_rounds(rounds, f"a run of {rounds} rounds")

    def check_task(self, round: int, cohort: int) -> None:
        """Whether the owner allows training in a round; the server may ask for other than it said at joining.

        Args:
            round: Number of the round, from 1.
            cohort: How many nodes were asked.

        Raises:
            PolicyRefused: naming the setting and what was asked.
        """
        self._check_protection()
        if cohort < self.smallest_cohort:
            raise PolicyRefused(
                f"the owner's policy: smallest_cohort = {self.smallest_cohort} forbids a cohort of {cohort}"
            )
        self._check_rounds(round, f"round {round}")

    def _check_protection(self) -> None:
        if self.require_secure_sum:
            raise PolicyRefused("the owner's policy: require_secure_sum = true, and the server offers no secure sum")
        if self.require_dp:
            raise PolicyRefused("the owner's policy: require_dp = true, and the server offers no differential privacy")

    def _check_rounds(self, rounds: int, asked: str) -> None:
        if self.most_rounds is not None and rounds > self.most_rounds:
            raise PolicyRefused(f"the owner's policy: most_rounds = {self.most_rounds} forbids {asked}")


_TYPES = {field.name: field.type for field in msgspec.structs.fields(Policy)}


def _checked(path: Path, name: str, value: object) -> Any:
    if name not in _TYPES:
        near = difflib.get_close_matches(name, _TYPES, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise AdmissionError(f"{path}: there is no setting {name}; {meant}Settings are {', '.join(_TYPES)}")
    try:
        return msgspec.convert(value, _TYPES[name])
    except msgspec.ValidationError as error:
        raise AdmissionError(f"{path}: {name} = {value!r}: {str(error).lower()}") from error
