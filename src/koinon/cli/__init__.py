"""The command `koinon`."""

from koinon.cli.main import main

__all__ = ["main"]
