"""From an aggregated update to the next model, and who takes part."""
