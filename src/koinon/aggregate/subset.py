"""The n - f points whose greatest distance from each other is the least."""

import torch


def closest_subset(squared: torch.Tensor, f: int) -> list[int]:
    """Which points to keep; of several subsets equally close, one that depends on nothing but the distances.

    A subset of diameter r is left when every pair farther apart than r has lost one of its two. Whether f losses suffice is
    found by trying either of a pair, f pairs deep; the least such r by bisection over the distances.

    Args:
        squared: Squared distances, `[n, n]`.
        f: How many points are left out.
    """
    count = len(squared)
    distances = sorted(set(squared[torch.triu(torch.ones(count, count, dtype=torch.bool), 1)].tolist()))
    low, high = 0, len(distances) - 1
    best: frozenset[int] = frozenset(range(count - f, count))
    while low <= high:
        middle = (low + high) // 2
        far = (squared > distances[middle]).triu(1).nonzero().tolist()
        lost = _cover([(first, second) for first, second in far], f)
        if lost is None:
            low = middle + 1
        else:
            best, high = lost, middle - 1
    kept = [point for point in range(count) if point not in best]
    return _without_farthest(squared, kept, count - f)


def _cover(pairs: list[tuple[int, int]], most: int) -> frozenset[int] | None:
    """At most so many points that meet every pair; None if there are none."""
    if not pairs:
        return frozenset()
    if most == 0:
        return None
    degrees: dict[int, int] = {}
    for pair in pairs:
        for point in pair:
            degrees[point] = degrees.get(point, 0) + 1
    busiest = max(degrees, key=lambda point: (degrees[point], -point))
    if degrees[busiest] * most < len(pairs):
        return None
    taken = _cover([pair for pair in pairs if busiest not in pair], most - 1)
    if taken is not None:
        return taken | {busiest}
    if degrees[busiest] > most:
        return None  # all its partners would have to go instead
    partners = {point for pair in pairs if busiest in pair for point in pair} - {busiest}
    rest = _cover([pair for pair in pairs if not partners.intersection(pair)], most - len(partners))
    return None if rest is None else rest | partners


def _without_farthest(squared: torch.Tensor, kept: list[int], size: int) -> list[int]:
    """Fewer points, down to `size`: those go that are farthest from the others on the whole."""
    while len(kept) > size:
        spread = squared[kept][:, kept].sum(1)
        kept.pop(int(spread.argmax()))
    return kept
