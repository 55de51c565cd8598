"""Run benchmarks and print one table.

    python -m benchmarks [NAME ...] [--quick] [--folder DIR]

Real processes talk over real TLS on loopback. `--quick` only shows that a benchmark works: its figures mean nothing.
"""

import argparse
import importlib
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, table

NAMES = (
    "round_overhead", "upload", "memory", "longrun", "idle", "simulate", "on_ray", "dpsgd", "noise", "rules", "codecs",
    "encode_memory", "slow_network", "secure", "secure_round", "encrypted",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="the smallest setting, only to see that it works")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary folder by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; take some of {', '.join(NAMES)}")
    figures: dict[str, list[Figure]] = {}
    for name in arguments.names or NAMES:
        print(f"{name} ...", flush=True)
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="koinon-") as folder:
            figures[name] = importlib.import_module(f"benchmarks.{name}").measure(Path(folder), arguments.quick)
    print(table(figures))


if __name__ == "__main__":
    main()
