"""Local training: from a model vector and data to an update."""
