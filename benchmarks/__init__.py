"""How fast and how small Koinon is: `python -m benchmarks [NAME ...]`, against a baseline measured in the same run."""
