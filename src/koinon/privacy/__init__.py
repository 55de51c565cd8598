"""What is spent of people's privacy: noisy releases as data, and what a sequence of them amounts to."""

from koinon.privacy.accountant import Guarantee, epsilon, spent

__all__ = ["Guarantee", "epsilon", "spent"]
