"""What holds for every test."""

import os

from hypothesis import settings

# No deadlines: the machine is shared, and a slow example is no fault. In CI the examples are the same every time.
settings.register_profile("koinon", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("koinon")
