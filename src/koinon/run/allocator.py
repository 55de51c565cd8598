"""Memory that is free but still counted: the C library keeps what large tensors leave behind."""

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's; other C libraries have none and keep less."""


def give_back() -> None:
    """Return free memory to the system; takes microseconds. Without it a process grows with every large round."""
    if _TRIM is not None:
        _TRIM(0)
