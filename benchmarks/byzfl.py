"""byzfl's rules, to be compared with: its front door imports torchvision, so it is left shut."""

import importlib
import importlib.metadata
import sys
import types


def rules(module: str = "aggregators.aggregators") -> types.ModuleType:
    """A module of byzfl 0.0.11, by its name inside the package."""
    if "byzfl" not in sys.modules:
        package = types.ModuleType("byzfl")
        package.__path__ = [str(importlib.metadata.distribution("byzfl").locate_file("byzfl"))]
        sys.modules["byzfl"] = package
    return importlib.import_module(f"byzfl.{module}")
