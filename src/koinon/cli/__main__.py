"""`python -m koinon.cli` is `koinon`."""

from koinon.cli import main

main()
