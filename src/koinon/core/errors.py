"""The exception tree. The type says whose fault it is; the message says what to do next.

KoinonError
├── AdmissionError       the configuration cannot work; change it              exit 2
├── PolicyRefused        a data owner's policy forbids it; ask the owner        exit 3
├── Unavailable          the world is not as needed: a file, a port, a disk     exit 4
├── ProtocolViolation    the peer broke the rules, or is not who it must be     exit 5
├── ClientFailed         one client's training failed; the others go on         exit 6
└── VerificationFailed   a record was edited or is damaged                      exit 7
"""

from typing import ClassVar


class KoinonError(Exception):
    """Base of every error that Koinon raises on purpose; its message is one line for a person."""

    exit_code: ClassVar[int] = 1


class AdmissionError(KoinonError):
    """The configuration cannot work; the message names the cure. Raised at construction."""

    exit_code = 2


class PolicyRefused(KoinonError):
    """A data owner's policy forbids what was asked; raised on the owner's machine."""

    exit_code = 3


class Unavailable(KoinonError):
    """Something outside the program is missing or broken: data, a file, a port, a disk, a peer."""

    exit_code = 4


class ProtocolViolation(KoinonError):
    """The peer sent what the protocol forbids, or could not prove who it is."""

    exit_code = 5


class ClientFailed(KoinonError):
    """One client's local training or evaluation failed; nothing of it enters the model."""

    exit_code = 6


class VerificationFailed(KoinonError):
    """A record that must not change was edited, truncated or damaged."""

    exit_code = 7
