"""Whose identities a node adds its updates up with: those that its owner lists, or whoever it met first by a name."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from koinon.core.errors import VerificationFailed
from koinon.core.types import ClientId
from koinon.durable.checkpoint import replacing
from koinon.secure.messages import Entry


class Peers:
    """The identities that one node knows.

    Args:
        path: Where those that it met are kept, for all its runs.
        listed: Names and public keys by the owner's policy, to whom nobody is ever added; None: whoever it meets first.

    Raises:
        VerificationFailed: if the file is damaged.
    """

    def __init__(self, path: Path, listed: Mapping[ClientId, bytes] | None = None) -> None:
        self._path = path
        self._listed = listed
        self._met: dict[ClientId, bytes] = {}
        if listed is None and path.exists():
            try:
                self._met = msgspec.json.decode(path.read_bytes(), type=dict[str, bytes])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise VerificationFailed(
                    f"{path} is damaged; restore it, or remove it to trust anew whom this node meets"
                ) from None

    def among(self, entries: tuple[Entry, ...]) -> dict[ClientId, bytes]:
        """Whom the node trusts, if these are who it meets now."""
        if self._listed is not None:
            return dict(self._listed)
        return {entry.name: entry.identity for entry in entries} | self._met

    def met(self, entries: tuple[Entry, ...]) -> None:
        """Remember identities whose names are new, durable on return.

        Raises:
            Unavailable: if the disk is full or broken.
        """
        new = {entry.name: entry.identity for entry in entries if entry.name not in self._met}
        if self._listed is not None or not new:
            return
        known = self._met | new
        with replacing(self._path) as temporary:
            temporary.write_bytes(msgspec.json.encode(known))
        self._met = known
