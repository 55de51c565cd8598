"""Memory that is free but still counted: the C library keeps what large tensors leave behind."""

import ctypes

_LIBRARY = ctypes.CDLL(None)

_TRIM = getattr(_LIBRARY, "malloc_trim", None)
"""glibc's; other C libraries have none and keep less."""

_OPTION = getattr(_LIBRARY, "mallopt", None)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of options in malloc.h."""

_LARGEST = 32 << 20
"""Bytes up to which glibc can be told to keep what is freed; larger tensors cost page faults every time."""


def give_back() -> None:
    """Return free memory to the system; takes microseconds. Without it a process grows with every large round."""
    if _TRIM is not None:
        _TRIM(0)


def hold_on() -> None:
    """Keep freed memory for the next tensor, up to 256 MiB of it, in this process and those that are forked from it.

    A simulation makes the same tensors for every client, and page faults would cost it a fifth of its time.
    """
    if _OPTION is not None:
        _OPTION(_MMAP_THRESHOLD, _LARGEST)
        _OPTION(_TRIM_THRESHOLD, 8 * _LARGEST)
