"""What holds for every test."""

import logging
import os

import pytest
from hypothesis import settings

# No deadlines: the machine is shared, and a slow example is no fault. In CI the examples are the same every time.
settings.register_profile("koinon", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("koinon")


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """What a test configures of the process's loggers ends with it."""
    root, koinon = logging.getLogger(), logging.getLogger("koinon")
    before = root.handlers[:], root.level, koinon.level
    yield
    root.handlers[:], level, own = before
    root.setLevel(level)
    koinon.setLevel(own)
