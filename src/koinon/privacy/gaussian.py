"""The Gaussian mechanism, analytically: the least noise for one release, exact for every epsilon.

The classic sqrt(2 ln(1.25 / delta)) / epsilon is nowhere used: it wastes noise below epsilon = 8.4 (at delta 1e-5) and
gives too little above.

Source: Balle & Wang, "Improving the Gaussian mechanism for differential privacy" (2018), Theorem 8.
"""

import math

import numpy as np

from koinon.core.errors import AdmissionError


def analytic_stddev(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """The smallest standard deviation of Gaussian noise that is (epsilon, delta) private.

    Args:
        epsilon: > 0.
        delta: In (0, 1).
        sensitivity: How far neighbours can move the released vector in L2 norm, > 0.

    Raises:
        AdmissionError: if an argument is out of its range.
    """
    from dp_accounting import get_sigma_gaussian  # a quarter of a second to import, and few runs need it

    if not 0 < epsilon < math.inf:
        raise AdmissionError(f"epsilon is {epsilon}, but must be a positive number; 0.1 to 10 is usual")
    if not 0 < delta < 1:
        raise AdmissionError(f"delta is {delta}, but must lie between 0 and 1; less than 1 / population is usual")
    with np.errstate(divide="ignore"):  # the search starts where delta rounds to 0
        return _positive(sensitivity, "sensitivity") * float(get_sigma_gaussian(epsilon, delta))


def analytic_delta(epsilon: float, stddev: float, sensitivity: float = 1.0) -> float:
    """The smallest delta at which Gaussian noise is (epsilon, delta) private.

    Args:
        epsilon: >= 0.
        stddev: Standard deviation of the noise, > 0.
        sensitivity: How far neighbours can move the released vector in L2 norm, > 0.

    Raises:
        AdmissionError: if an argument is out of its range.
    """
    from scipy.special import log_ndtr

    if not 0 <= epsilon < math.inf:
        raise AdmissionError(f"epsilon is {epsilon}, but must be a number from 0 on")
    moved = _positive(sensitivity, "sensitivity") / _positive(stddev, "stddev")
    # Logarithms: far in the tails the two terms underflow, while their difference is what is asked for.
    larger = float(log_ndtr(moved / 2 - epsilon / moved))
    smaller = epsilon + float(log_ndtr(-moved / 2 - epsilon / moved))
    return -math.exp(larger) * math.expm1(min(smaller - larger, 0.0))


def _positive(value: float, name: str) -> float:
    if not 0 < value < math.inf:
        raise AdmissionError(f"{name} is {value}, but must be a positive number")
    return value
