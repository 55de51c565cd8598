"""Whether a promise means anything."""


def fault_of_delta(delta: float, units: int) -> str | None:
    """What is wrong with `delta` for a population of `units`, or None.

    From 1 / units on, publishing one unit chosen by lot would count as private.
    """
    if delta < 1 / units:
        return None
    return f"delta {delta:g} is too large for {units} units, of which it could give one away; choose less than {1 / units:.3g}"
