"""Sorting networks: which pairs of rows to put in order, and no more of them than what is asked for needs.

A network does the same comparisons whatever the values, so that it runs on whole blocks of columns at once.

Source: Batcher, "Sorting networks and their applications" (1968); Knuth, volume 3, §5.3.4.
"""

import functools
from dataclasses import dataclass

BOTH, LEAST, GREATEST = 0, 1, 2
"""What a comparison must leave: the lesser in the first row and the greater in the second, or only one of them."""


@dataclass(frozen=True)
class Network:
    """Comparisons in order, each of a `first` and a `second` row, and what it must leave."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    kind: tuple[int, ...]


@functools.lru_cache(maxsize=64)
def network(rows: int, low: int, high: int) -> Network:
    """What brings the values of rank `low` .. `high - 1` together into those rows, in any order.

    Args:
        rows: How many there are.
        low: The least rank that is asked for, from 0.
        high: One more than the greatest.
    """
    wanted = dict.fromkeys(range(low, high), "sum")  # in any order; "exact" where a later comparison needs its own
    kept: list[tuple[int, int, int]] = []
    for first, second in reversed(_comparisons(rows)):
        asked = wanted.get(first), wanted.get(second)
        if asked in ((None, None), ("sum", "sum")):
            continue
        kind = LEAST if asked[1] is None else GREATEST if asked[0] is None else BOTH
        kept.append((first, second, kind))
        wanted[first] = wanted[second] = "exact"
    kept.reverse()
    return Network(*(tuple(column) for column in zip(*kept, strict=True))) if kept else Network((), (), ())


def sorting(rows: int) -> Network:
    """What puts all rows in order."""
    pairs = _comparisons(rows)
    return Network(tuple(first for first, _ in pairs), tuple(second for _, second in pairs), (BOTH,) * len(pairs))


@functools.lru_cache(maxsize=64)
def _comparisons(rows: int) -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort of the next power of two, without the rows that are not there."""
    pairs: list[tuple[int, int]] = []
    width = 1
    while width < rows:
        step = width
        while step >= 1:
            for start in range(step % width, rows - step, 2 * step):
                pairs += [
                    (row, row + step)
                    for row in range(start, min(start + step, rows - step))
                    if row // (2 * width) == (row + step) // (2 * width)
                ]
            step //= 2
        width *= 2
    return tuple(pairs)
