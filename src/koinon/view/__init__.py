"""What a person sees: the live view, the log, the report of a run."""
