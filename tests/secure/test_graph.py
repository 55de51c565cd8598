"""How many neighbours, and which."""

from fractions import Fraction
from itertools import combinations, pairwise
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.errors import AdmissionError
from koinon.secure.graph import (
    COMPLETE_UP_TO,
    FAILURE_BITS,
    Sizes,
    _tail,
    against_curious_server,
    against_lying_server,
    beside,
    order,
)

SHARES = ((0.05, 0.05), (0.1, 0.1), (0.2, 0.2), (0.33, 0.1))
PUBLISHED = {
    100: ((12, 6), (22, 11), (40, 21), (42, 32)),
    1_000: ((30, 17), (48, 27), (98, 54), (102, 72)),
    10_000: ((34, 20), (54, 31), (122, 67), (126, 88)),
    1_000_000: ((38, 22), (64, 36), (144, 78), (150, 104)),
}
CASES = [(n, *shares, k, t) for n, row in PUBLISHED.items() for shares, (k, t) in zip(SHARES, row, strict=True)]


def exact_tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    counts = range(max(0, least), min(marked, drawn) + 1)
    ways = sum(comb(marked, i) * comb(population - marked, drawn - i) for i in counts)
    return Fraction(ways, comb(population, drawn))


@given(st.integers(1, 400), st.data())
def test_tails_are_those_of_exact_arithmetic(population: int, data: st.DataObject) -> None:
    marked, drawn = data.draw(st.integers(0, population)), data.draw(st.integers(0, population))
    least = data.draw(st.integers(0, drawn + 1))
    exact = exact_tail(population, marked, drawn, least)
    assert _tail(population, marked, drawn, least) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("clients", "corrupt", "dropout", "k", "t"), CASES)
def test_the_published_table_holds_by_exact_tails(clients, corrupt, dropout, k, t) -> None:
    """The published pairs meet the paper's three conditions, and ours are never larger.

    Twelve of sixteen are equal. In the others the table has two or four more than exact tails (hypergeometric, a union over
    clients, two gaps of k/2 where the ring is cut) show to suffice; it does not say by which bounds it was found.
    """
    bad, gone = int(corrupt * clients + 1e-9), int(dropout * clients + 1e-9)
    assert clients * _tail(clients - 1, bad, k, t) < 2.0**-40
    assert clients * _tail(clients - 1, gone, k, k - t + 1) < 2.0**-FAILURE_BITS
    found = against_curious_server(clients, corrupt, dropout)
    assert k - 4 <= found.neighbours <= k
    assert abs(found.threshold - t) <= 3
    assert found.threshold <= t


def test_most_of_the_published_table_is_reproduced() -> None:
    found = [against_curious_server(clients, corrupt, dropout) for clients, corrupt, dropout, _, _ in CASES]
    equal = [size.neighbours == case[3] for size, case in zip(found, CASES, strict=True)]
    assert sum(equal) == 12
    assert found[:4] == [Sizes(k, t) for k, t in PUBLISHED[100]]


@pytest.mark.parametrize("clients", [60, 100, 1000, 10_000])
def test_a_lying_server_cannot_have_both_secrets(clients: int) -> None:
    sizes = against_lying_server(clients, 0.1, 0.1)
    k, t, bad = sizes.neighbours, sizes.threshold, clients // 10
    assert clients * exact_tail(clients - 1, bad, k, 2 * t - k) < 2.0**-40
    assert t > k / 2
    assert sizes.neighbours > against_curious_server(clients, 0.1, 0.1).neighbours


@given(st.integers(3, COMPLETE_UP_TO), st.floats(0, 0.3), st.floats(0, 0.3))
def test_small_federations_are_certain(clients: int, corrupt: float, dropout: float) -> None:
    try:
        sizes = against_lying_server(clients, corrupt, dropout)
    except AdmissionError:
        return
    honest_neighbours = clients - 1 - int(corrupt * clients)
    assert sizes.neighbours == clients - 1
    assert honest_neighbours + 2 * int(corrupt * clients) < 2 * sizes.threshold
    assert clients - 1 - int(dropout * clients) >= sizes.threshold


def test_more_security_takes_more_neighbours() -> None:
    assert against_lying_server(1000, 0.1, 0.1, 80).neighbours > against_lying_server(1000, 0.1, 0.1, 40).neighbours


@pytest.mark.parametrize(("clients", "corrupt", "dropout"), [(1, 0, 0), (4, 0.5, 0.3), (10, 1.0, 0), (200, 0.4, 0.4)])
def test_what_cannot_be_borne_is_refused(clients, corrupt, dropout) -> None:
    with pytest.raises(AdmissionError):
        against_lying_server(clients, corrupt, dropout)


def digests(clients: int, salt: int = 0) -> dict[str, bytes]:
    return {f"{n}": bytes([salt]) * 32 for n in range(clients)}


def test_neighbours_are_mutual_and_as_many_as_asked_for() -> None:
    ring = order("run", 1, digests(60))
    near = {name: beside(ring, name, 8) for name in ring}
    assert all(len(names) == 8 and name not in names for name, names in near.items())
    assert all((a in near[b]) == (b in near[a]) for a, b in combinations(ring, 2))
    assert all(b in near[a] for a, b in pairwise(ring))
    assert beside(ring, "3", 59) == frozenset(ring) - {"3"}


def test_the_graph_follows_from_all_keys_the_run_and_the_round() -> None:
    one = digests(60)
    first = order("run", 1, one)
    assert first == order("run", 1, dict(reversed(one.items())))
    others = [order("run", 2, one), order("other", 1, one), order("run", 1, {**one, "7": b"\1" * 32})]
    assert all(sorted(other) == sorted(first) and other != first for other in others)
