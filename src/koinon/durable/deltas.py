"""What the last rounds changed, one file for each: what is sent to nodes that hold an earlier model.

runs/<id>/deltas/round-N    digest of the model before (32 bytes) | the encoded difference
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from koinon.core.errors import Unavailable
from koinon.durable.checkpoint import replacing
from koinon.protocol.lineage import leading
from koinon.protocol.messages import Blob, Delta

HEAD = 32
"""Where in a file the encoded difference begins."""


class Deltas:
    """The kept differences of one run.

    Args:
        folder: Where they lie; made with the first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, round: int, base: str, change: bytes | memoryview) -> Delta:
        """Write what a round changed of the model with digest `base`, durable on return.

        Raises:
            Unavailable: if the disk is full or broken.
        """
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot make {self._folder}: {error}") from error
        with replacing(self.path(round)) as temporary, temporary.open("wb") as file:
            file.write(bytes.fromhex(base))
            file.write(change)
        return _delta(round, base, change)

    def leading_to(self, model: Blob, round: int) -> tuple[Delta, ...]:
        """What leads to the model after a round, the oldest first; that of a later round, never closed, is left out.

        Raises:
            Unavailable: if the disk is broken.
        """
        deltas: tuple[Delta, ...] = ()
        try:
            for path in sorted(self._folder.glob("round-*")):
                if (number := int(path.name.partition("-")[2])) <= round:
                    content = path.read_bytes()
                    last = _delta(number, content[:HEAD].hex(), memoryview(content)[HEAD:])
                    deltas = leading(deltas, last, model)
        except OSError as error:
            raise Unavailable(f"cannot read {self._folder}: {error}") from error
        return deltas

    def path(self, round: int) -> Path:
        """Where the difference of a round is."""
        return self._folder / f"round-{round:06d}"

    def drop(self, round: int, needed: Sequence[Delta]) -> None:
        """Delete those of rounds before this one that come before all that are needed."""
        before = min((delta.round for delta in needed), default=round)
        for path in self._folder.glob("round-*"):
            if int(path.name.partition("-")[2]) < before:
                path.unlink()


def _delta(round: int, base: str, change: bytes | memoryview) -> Delta:
    return Delta(base, round, Blob(hashlib.sha256(change).hexdigest(), len(change)))
