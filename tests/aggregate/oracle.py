"""Robust rules once more, in float64 and as their papers write them: slow, plain, and by nobody's kernels."""

import itertools

import numpy as np


def distances(x):
    return np.linalg.norm(x[:, None] - x[None], axis=2)


def krum_scores(x, f):
    squared = np.sort(distances(x) ** 2, axis=1)
    return squared[:, 1 : max(len(x) - f - 1, 2)].sum(1)


def krum(x, f):
    return x[krum_scores(x, f).argmin()]


def multi_krum(x, f, m):
    return x[np.argsort(krum_scores(x, f), kind="stable")[:m]].mean(0)


def trimmed_mean(x, f):
    return np.sort(x, axis=0)[f : len(x) - f].mean(0)


def mean_around_median(x, kept):
    away = np.abs(x - np.median(x, axis=0))
    nearest = np.argsort(away, axis=0, kind="stable")[:kept]
    return np.take_along_axis(x, nearest, 0).mean(0)


def bulyan(x, f):
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        chosen += [left.pop(int(krum_scores(x[left], f).argmin()))]
    return mean_around_median(x[sorted(chosen)], len(x) - 4 * f)


def minimum_diameter(apart, f):
    subsets = itertools.combinations(range(len(apart)), len(apart) - f)
    return min(apart[np.ix_(subset, subset)].max() for subset in subsets)


def faba(x, f):
    left = list(range(len(x)))
    for _ in range(f):
        left.pop(int(np.linalg.norm(x[left] - x[left].mean(0), axis=1).argmax()))
    return x[left].mean(0)


def caf(x, f):
    weights, best, least = np.ones(len(x)), None, np.inf
    while best is None or weights.sum() > len(x) - 2 * f:
        mean = weights @ x / weights.sum()
        _, values, directions = np.linalg.svd(
            np.sqrt(weights / weights.sum())[:, None] * (x - mean), full_matrices=False
        )
        if values[0] ** 2 < least:
            best, least = mean, values[0] ** 2
        along = ((x - mean) @ directions[0]) ** 2
        weights = (weights * (1 - along / along[weights > 0].max())).clip(0)
    return best


def geometric_median(x):
    z, before = x.mean(0), np.inf
    while np.abs(z - before).max() > 1e-12 * np.abs(x).max():
        weights = 1 / np.linalg.norm(x - z, axis=1).clip(1e-9)
        z, before = weights @ x / weights.sum(), z
    return z


def centered_clipping(x, center, norm, steps):
    for _ in range(steps):
        away = np.linalg.norm(x - center, axis=1).clip(1e-300)
        center = center + ((x - center) * np.minimum(1, norm / away)[:, None]).mean(0)
    return center


def nearest_neighbors(x, f):
    nearest = np.argsort(distances(x), axis=1, kind="stable")[:, : len(x) - f]
    return x[nearest].mean(1)


def adaptive_clipping(x, f):
    norms = np.linalg.norm(x, axis=1)
    clipped = int(2 * f / len(x) * (len(x) - f))
    most = np.sort(norms)[len(x) - clipped - 1]
    return x * np.minimum(1, most / norms.clip(1e-300))[:, None]


def fltrust(x, root):
    norms = np.linalg.norm(x, axis=1)
    trust = (x @ root / (norms * np.linalg.norm(root))).clip(0)
    return (trust[:, None] * x / norms[:, None] * np.linalg.norm(root)).sum(0) / trust.sum()
