"""Who a client of a secure sum is, and what it checks of a cohort that the server names; whatever the scheme."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from koinon.core.errors import ProtocolViolation
from koinon.core.types import ClientId
from koinon.secure import keys
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.messages import Entry
from koinon.secure.secure_sum import SecureSum

Scheme = TypeVar("Scheme", SecureSum, EncryptedSum)


@dataclass(frozen=True)
class Party(Generic[Scheme]):
    """Who a client is and what it insists on.

    Attributes:
        run: Id of the run.
        name: Its own.
        sign: Signs with its Ed25519 identity.
        trusted: Identity keys of the clients that it accepts beside itself, and its own, by name.
        scheme: From its own definition.
        length: D, coordinates of an update.
    """

    run: str
    name: ClientId
    sign: Callable[[bytes], bytes] = field(repr=False)
    trusted: Mapping[ClientId, bytes]
    scheme: Scheme
    length: int

    def check_size(self, cohort: Sequence[Entry]) -> None:
        """Whether a cohort is in order and large enough.

        Raises:
            ProtocolViolation: if it is not.
        """
        names = [entry.name for entry in cohort]
        if names != sorted(set(names)):
            raise ProtocolViolation("the cohort is not sorted, or names a client twice")
        if len(names) < self.scheme.minimum:
            raise ProtocolViolation(
                f"a cohort of {len(names)}; this client takes part among {self.scheme.minimum} or more"
            )

    def check_signatures(self, cohort: Sequence[Entry], signed: Callable[[Entry], bytes]) -> None:
        """Whether every client of a cohort is trusted and signed its keys.

        Args:
            signed: What a client signs.

        Raises:
            ProtocolViolation: if one is not, or did not.
        """
        for entry in cohort:
            if entry.identity != self.trusted.get(entry.name, entry.identity):
                raise ProtocolViolation(
                    f"{entry.name} is said to have another identity than this client trusts by that name"
                )
            keys.verified(self.trusted, entry.name, signed(entry), entry.signature)
