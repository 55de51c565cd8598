"""The secret from which a run's noise is drawn, on the machine that draws it and nowhere else.

It lives as long as the run: noise that is drawn again after a crash is the same noise, and no second view of the same
data leaves with other noise, from which the two could be averaged.
"""

import contextlib
import os
from pathlib import Path

from koinon.core.errors import Unavailable, VerificationFailed
from koinon.core.noise import Noise
from koinon.durable.checkpoint import sync_folder

KEY_BYTES = 32


def noise_of(folder: Path) -> Noise:
    """The run's noise, made and put on the disk when it is first asked for; readable by its owner alone.

    Raises:
        Unavailable: if it cannot be written or read.
        VerificationFailed: if it is damaged; then it must not be made anew, since noise may have been drawn from it.
    """
    path = folder / "noise.key"
    try:
        if not path.exists():
            _make(path)
        key = path.read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot keep the secret of the noise in {path}: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise VerificationFailed(f"{path} is damaged; restore it, or start a new run")
    return Noise(key, secret=True)


def _make(path: Path) -> None:
    temporary = path.with_name(".noise.key.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, Noise.fresh().key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(path)
    sync_folder(path.parent)
