"""What is spent of people's privacy: noisy releases as data, and what a sequence of them amounts to."""

from koinon.privacy.accountant import Guarantee, epsilon, spent
from koinon.privacy.audit import Audit, audited, lower_bound

__all__ = ["Audit", "Guarantee", "audited", "epsilon", "lower_bound", "spent"]
