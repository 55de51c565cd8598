"""Noise that is correlated from round to round, so that what is added in one is partly taken back in the next.

The noise of round t is Σ_k d_k · z_(t-k), where z is independent Gaussian noise and d are the first coefficients of
(1 - x)^½. All rounds together are then one Gaussian release of C·x, with x the sums of the rounds and C the inverse of
the triangular Toeplitz matrix of d, whose coefficients c are positive and fall: up to the number of bands they are those
of (1 - x)^-½, and after that each is a mean, with weights that sum to less than 1, of the ones before it, shifted by one.

Source: Kalinin, McKenna, Upadhyay, Lampert, "Back to square roots: an optimal bound on the matrix factorization error for
multi-epoch differentially private SGD" (2025); the mechanism is that of Choquette-Choo et al., "Multi-epoch matrix
factorization mechanisms for private machine learning" (2023).
"""

import functools

import numpy as np

MOST_BANDS = 64


def coefficients(bands: int) -> list[float]:
    """The first `bands` coefficients of (1 - x)^½: 1, -1/2, -1/8, …"""
    found = [1.0]
    for k in range(1, bands):
        found.append(found[-1] * (k - 1.5) / k)
    return found


@functools.lru_cache(maxsize=256)
def sensitivity(bands: int, rounds: int, separation: int) -> float:
    """The largest L2 norm of what one client adds to C·x, if it adds at most norm 1 to a round.

    Since c falls, nobody can add more than who takes part in the first round and then as often as allowed: of two
    columns of C the product is the larger, the earlier and the nearer to each other they are.

    Args:
        bands: How many coefficients d has, >= 1.
        rounds: How many rounds there are, >= 1.
        separation: A client takes part at most once in so many rounds that follow each other, >= 1.

    Source: Kalinin and Lampert, "Banded square root matrix factorization for differentially private model training"
    (2024), theorem 2.
    """
    from scipy.signal import lfilter

    takes_part = np.zeros(rounds)
    takes_part[::separation] = 1.0
    return float(np.linalg.norm(lfilter([1.0], coefficients(bands), takes_part)))


def error(bands: int, rounds: int, separation: int) -> float:
    """Root mean square noise of the sums of the first 1, 2 … rounds, at noise multiplier 1 and bound 1."""
    summed = np.cumsum(np.pad(coefficients(min(bands, rounds)), (0, max(rounds - bands, 0))))
    return sensitivity(bands, rounds, separation) * float(np.sqrt(np.cumsum(summed**2).mean()))


@functools.lru_cache(maxsize=256)
def best_bands(rounds: int, separation: int) -> int:
    """Of 1, 2, 4 … 64 bands those with the least `error`."""
    choices: list[int] = [2**power for power in range(7)]
    return min(choices, key=lambda bands: error(bands, rounds, separation))
