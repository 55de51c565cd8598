"""Robust rules against float64 references, against byzfl, and against liars."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import koinon as kn
from benchmarks.byzfl import rules
from koinon.aggregate import kernels
from koinon.aggregate.geometry import Mixture, geometry
from koinon.aggregate.network import network
from koinon.aggregate.reducer import Matrix, Round, reduced
from koinon.aggregate.subset import closest_subset
from koinon.core.rng import generator
from koinon.core.types import Spec
from tests.aggregate import oracle

F = 3
RULES = {
    "median": (kn.Median(), lambda x: np.median(x, axis=0)),
    "trimmed mean": (kn.TrimmedMean(F), lambda x: oracle.trimmed_mean(x, F)),
    "mean around median": (kn.MeanAroundMedian(F), lambda x: oracle.mean_around_median(x, len(x) - F)),
    "Krum": (kn.Krum(F), lambda x: oracle.krum(x, F)),
    "Multi-Krum": (kn.MultiKrum(F), lambda x: oracle.multi_krum(x, F, len(x) - F)),
    "Multi-Krum of 4": (kn.MultiKrum(F, 4), lambda x: oracle.multi_krum(x, F, 4)),
    "Bulyan": (kn.Bulyan(F), lambda x: oracle.bulyan(x, F)),
    "FABA": (kn.FABA(F), lambda x: oracle.faba(x, F)),
    "CAF": (kn.CAF(F), lambda x: oracle.caf(x, F)),
    "geometric median": (kn.GeometricMedian(), oracle.geometric_median),
    "centred clipping": (
        kn.CenteredClipping(5.0, 3),
        lambda x: oracle.centered_clipping(x, np.zeros(x.shape[1]), 5.0, 3),
    ),
    "norm clipping": (
        kn.NormClipping(5.0),
        lambda x: (x * np.minimum(1, 5.0 / np.linalg.norm(x, axis=1))[:, None]).mean(0),
    ),
    "mixing, then trimming": (
        kn.NearestNeighborMixing(kn.TrimmedMean(F), F),
        lambda x: oracle.trimmed_mean(oracle.nearest_neighbors(x, F), F),
    ),
    "mixing, then Krum": (
        kn.NearestNeighborMixing(kn.Krum(F), F),
        lambda x: oracle.krum(oracle.nearest_neighbors(x, F), F),
    ),
    "clipping, mixing, median": (
        kn.AdaptiveRobustClipping(kn.NearestNeighborMixing(kn.Median(), F), F),
        lambda x: np.median(oracle.nearest_neighbors(oracle.adaptive_clipping(x, F), F), axis=0),
    ),
}


def honest(n: int, d: int = 3000, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed, "updates"))


def lied(n: int, f: int = F) -> torch.Tensor:
    """Liars far away, all in one place."""
    updates = honest(n)
    updates[:f] = 100.0
    return updates


def close(found: torch.Tensor, expected: np.ndarray, rtol: float = 1e-6) -> None:
    scale = np.abs(expected).max()
    assert np.abs(found.numpy() - expected).max() <= rtol * max(scale, 1e-30)


@pytest.mark.parametrize("n", [15, 20])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_agrees_with_its_paper(name, n) -> None:
    rule, reference = RULES[name]
    for updates in (honest(n), lied(n)):
        close(rule(updates), reference(updates.double().numpy()), 2e-6)


@pytest.mark.parametrize("name", [name for name in RULES if "clipping" not in name])
def test_a_huge_common_offset_does_not_confuse_a_rule(name) -> None:
    """Float32 holds the differences to 1e-5 of them; distances from uncentred products would be all noise."""
    rule, reference = RULES[name]
    updates = (honest(16, 500).double() * 1e-3 + 7.0).float()
    moved = updates.double().numpy() - 7.0
    found = rule(updates).double().numpy() - 7.0
    assert np.abs(found - reference(moved)).max() < 1e-6  # half a step of float32 at 7


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("Bulyan", "CAF")])
def test_as_few_as_can_be_and_duplicates(name) -> None:
    rule, reference = RULES[name]
    fewest = honest(rule.least)
    close(rule(fewest), reference(fewest.double().numpy()), 2e-6)
    twins = honest(16)
    twins[4:9] = twins[3]
    assert rule(twins).isfinite().all()
    assert torch.allclose(rule(torch.ones(16, 50)), torch.ones(50)) or "clipping" in name


def test_bulyan_and_caf_bear_duplicates() -> None:
    for rule in (kn.Bulyan(3), kn.CAF(3)):
        assert torch.allclose(rule(torch.ones(16, 50)), torch.ones(50))


BYZFL = {
    "Median": ({}, kn.Median(), np.asarray),
    "TrMean": ({"f": F}, kn.TrimmedMean(F), np.asarray),
    "Meamed": ({"f": F}, kn.MeanAroundMedian(F), np.asarray),
    # byzfl takes the n - f - 1 nearest others, one more than the paper: the paper's rule for one liar fewer.
    "Krum": ({"f": F}, kn.Krum(F - 1), np.asarray),
    "MultiKrum": ({"f": F}, kn.MultiKrum(F - 1, 15 - F), np.asarray),
    # byzfl makes three steps from the origin with distances of at least 0.1, unless it is told otherwise.
    "GeometricMedian": ({"nu": 1e-6, "T": 3000}, kn.GeometricMedian(), np.asarray),
    "CenteredClipping": ({"L": 2, "tau": 5.0}, kn.CenteredClipping(5.0, 2), np.asarray),
}


@pytest.fixture(scope="module")
def byzfl():
    return rules()


@pytest.mark.parametrize("name", BYZFL)
def test_a_rule_agrees_with_byzfl(name, byzfl) -> None:
    settings, rule, _ = BYZFL[name]
    for updates in (honest(15), lied(15)):
        close(rule(updates), getattr(byzfl, name)(**settings)(updates.double().numpy()), 2e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(0, 6), st.integers(0, 10**6))
def test_the_closest_subset_is_as_close_as_any(f, more, seed) -> None:
    """Several may be: what is compared is the diameter, on distances of which many are equal."""
    points = torch.randint(0, 4, (2 * f + 1 + more, 2), generator=generator(seed, "points")).double()
    squared = torch.cdist(points, points).square()
    kept = closest_subset(squared, f)
    assert len(set(kept)) == len(points) - f
    assert squared[kept][:, kept].max() == pytest.approx(oracle.minimum_diameter(squared.numpy(), f))


def test_the_minimum_diameter_leaves_out_who_is_far(byzfl) -> None:
    updates = lied(15)
    close(kn.MinimumDiameter(F)(updates), updates[F:].double().numpy().mean(0))
    close(kn.MinimumDiameter(F)(updates), byzfl.MDA(f=F)(updates.double().numpy()), 2e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_the_middle_values_are_found_by_either_kernel(n, data) -> None:
    low = data.draw(st.integers(0, n - 1))
    high = data.draw(st.integers(low + 1, n))
    rows = torch.tensor(
        data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=n, max_size=n), min_size=1, max_size=5)),
        dtype=torch.float32,
    ).T.contiguous()
    expected = rows.double().sort(0).values[low:high].mean(0)
    for kernel in (kernels.middle_mean, kernels.middle_mean_torch):
        assert torch.allclose(kernel(rows, low, high).double(), expected, atol=1e-6)


def test_a_network_makes_no_comparison_that_nobody_asks_for() -> None:
    assert len(network(20, 0, 20).first) == 0, "the sum of all needs no order"
    assert len(network(20, 0, 1).first) == 19, "the least needs each other row once"
    assert len(network(100, 49, 51).first) < 0.9 * 1104


def test_without_numba_torch_does_the_same(monkeypatch) -> None:
    updates = honest(21)
    fast = kn.Median()(updates), kn.TrimmedMean(4)(updates)
    monkeypatch.setattr(kernels, "_numba", lambda: None)
    assert torch.equal(kn.Median()(updates), fast[0]) and torch.equal(kn.TrimmedMean(4)(updates), fast[1])


BEARING = {
    **{name: rule for name, (rule, _) in RULES.items() if name not in ("norm clipping", "centred clipping")},
    "minimum diameter": kn.MinimumDiameter(F),
    "DnC": kn.DnC(F),
    "SignGuard": kn.SignGuard(),
    "FLAME": kn.FLAME(),
    "bucketing": kn.Bucketing(kn.TrimmedMean(F), 2),
}


@pytest.mark.parametrize("lie", [1e6, -50.0])
@pytest.mark.parametrize("name", BEARING)
def test_liars_do_not_move_the_result_away_from_the_honest(name, lie) -> None:
    updates = 1.0 + 0.3 * honest(20, 400)
    truth = updates[F:].mean(0)
    updates[:F] = lie
    rule = BEARING[name]
    assert rule.tolerates(20) >= F
    spread = (updates[F:] - truth).norm(dim=1).mean()
    assert (rule(updates) - truth).norm() < 1.5 * spread
    assert (kn.Mean()(updates) - truth).norm() > 10 * spread


def test_what_the_mean_survives_only_in_part() -> None:
    updates = honest(20, 400)
    updates[:3] = 1e6
    assert float(kn.NormClipping(2.0)(updates).norm()) <= 2.0 + 1e-5
    assert float(kn.CenteredClipping(2.0)(updates).norm()) <= 2.0 + 1e-5


def test_sybils_are_fooled_and_their_history_counts() -> None:
    updates = honest(8, 300)
    updates[5:] = updates[5] + 1e-3 * honest(3, 300, seed=1)  # three that act as one
    rule, clients = kn.FoolsGold(), tuple("abcdefgh")
    memory, total = rule.reduce_round(rule.start(300), Matrix(updates, [1.0] * 8), Round(1, clients, generator(0, "t")))
    assert torch.allclose(total, updates[:5].mean(0), atol=0.1)
    assert set(memory) == set(clients) and torch.equal(memory["a"], updates[0])
    again, _ = rule.reduce_round(memory, Matrix(updates[:2], [1.0] * 2), Round(2, ("a", "h"), generator(0, "t")))
    assert torch.equal(again["a"], 2 * updates[0]) and torch.equal(again["b"], memory["b"])
    assert torch.equal(memory["a"], updates[0]), "what was given is not changed"


def test_trust_follows_the_servers_own_data() -> None:
    root = torch.ones(300)
    updates = 2.0 + honest(10, 300)
    updates[:6] = -5.0  # more than half lie
    known = Round(1, tuple("abcdefghij"), generator(0, "t"), root)
    rows = Matrix(updates, [1.0] * 10)
    _, trusted = reduced(kn.FLTrust(kn.Samples(torch.ones(1), torch.ones(1))), {}, rows, known)
    close(trusted, oracle.fltrust(updates.double().numpy(), root.double().numpy()), 2e-6)
    _, scored = reduced(kn.Zeno(kn.Samples(torch.ones(1), torch.ones(1)), f=6), {}, rows, known)
    close(scored, updates[6:].double().numpy().mean(0), 2e-6)
    with pytest.raises(ValueError, match="server's own update"):
        kn.FLTrust(root)(updates)


def test_centred_clipping_remembers_where_it_was() -> None:
    rule, updates = kn.CenteredClipping(1.0), 5 + honest(10, 100)
    rows, known = Matrix(updates, [1.0] * 10), Round(1, tuple("abcdefghij"), generator(0, "t"))
    memory, first = rule.reduce_round(rule.start(100), rows, known)
    _, second = rule.reduce_round(memory, rows, known)
    close(second, oracle.centered_clipping(updates.double().numpy(), first.double().numpy(), 1.0, 1))
    assert float(second.norm()) > 1.5 * float(first.norm())


def test_buckets_are_drawn_by_the_round_and_hold_everyone_once() -> None:
    updates, known = honest(9, 50), lambda seed: Round(1, tuple("abcdefghi"), generator(seed, "t"))
    rule = kn.Bucketing(kn.Mean(), 2)
    one, again, other = (reduced(rule, {}, Matrix(updates, [1.0] * 9), known(seed))[1] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    rows, _ = rule.rows(Matrix(updates, [1.0] * 9), known(3))
    assert isinstance(rows, Mixture) and torch.allclose(rows.matrix.sum(1), torch.ones(5, dtype=torch.float64))
    assert ((rows.matrix > 0).sum(0) == 1).all()


def test_a_mixture_has_the_geometry_of_its_rows() -> None:
    updates = 3.0 + honest(6, 5000)
    matrix = torch.rand(4, 6, dtype=torch.float64)
    made = matrix @ updates.double()
    found = geometry(Mixture(Matrix(updates, [1.0] * 6), matrix))
    assert torch.allclose(
        found.squared, torch.cdist(made, made, compute_mode="donot_use_mm_for_euclid_dist") ** 2, rtol=1e-6
    )
    assert torch.allclose(found.norms, made.norm(dim=1), rtol=1e-6)
    unit = made / made.norm(dim=1, keepdim=True)
    assert torch.allclose(found.cosines, unit @ unit.T, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_row(bad) -> None:
    updates = honest(9, 10)
    updates[4, 3] = bad
    with pytest.raises(ValueError, match="rows 4 have values that are not finite"):
        kn.Median()(updates)


@pytest.mark.parametrize(
    ("rule", "least"), [(kn.Krum(2), 7), (kn.TrimmedMean(2), 5), (kn.Bulyan(1), 7), (kn.Bucketing(kn.Krum(1), 2), 9)]
)
def test_too_few_updates_are_refused(rule, least) -> None:
    assert rule.least == least
    rule(honest(least, 10))
    with pytest.raises(ValueError, match=f"at least {least} updates"):
        rule(honest(least - 1, 10))
    with pytest.raises(kn.AdmissionError, match=f"needs {least} updates"):
        rule.admit(Spec(cohort=least - 1))
    with pytest.raises(kn.AdmissionError, match="must see each update"):
        rule.admit(replace(Spec(), visible=False))


@pytest.mark.parametrize(
    "make",
    [
        lambda: kn.Krum(-1),
        lambda: kn.MultiKrum(1, 0),
        lambda: kn.MinimumDiameter(17),
        lambda: kn.CenteredClipping(0.0),
        lambda: kn.NormClipping(float("nan")),
        lambda: kn.GeometricMedian(steps=0),
        lambda: kn.Bucketing(kn.Median(), 0),
        lambda: kn.NearestNeighborMixing(kn.Median(), -1),
        lambda: kn.DnC(1, filter=0.5),
        lambda: kn.SignGuard(low=2.0),
        lambda: kn.Zeno(None, -1),
        lambda: kn.Momentum(1.0),
    ],
)
def test_settings_out_of_bounds_are_refused(make) -> None:
    with pytest.raises(kn.AdmissionError):
        make()
