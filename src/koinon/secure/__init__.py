"""Sums of which the server learns nothing but the sum."""

from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.local import ideal, run_locally
from koinon.secure.playing import Group, Summed
from koinon.secure.ring import Tally
from koinon.secure.secret_shared import SecretShared
from koinon.secure.secure_sum import SecureSum

__all__ = ["EncryptedSum", "Group", "SecretShared", "SecureSum", "Summed", "Tally", "ideal", "run_locally"]
