"""Named moments at which a process can be told to kill itself, so that tests can kill it exactly there.

`KOINON_KILL_AT=NAME:MARKER` sends SIGKILL to this process when it first reaches NAME; the file MARKER, made just
before, keeps a process that is started again from dying again. Without the variable nothing happens.
"""

import os
import signal
from pathlib import Path

_NAME, _, _MARKER = os.environ.get("KOINON_KILL_AT", "").partition(":")


def reach(name: str) -> None:
    """The process has come to the moment `name`."""
    if name == _NAME and not Path(_MARKER).exists():
        Path(_MARKER).touch()
        os.kill(os.getpid(), signal.SIGKILL)
