"""A whole round gives the exact sum for every pattern of dropouts that leaves the threshold, and refuses otherwise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import koinon as kn
from koinon.core.errors import AdmissionError, ClientFailed, Unavailable
from koinon.core.rng import generator
from koinon.secure import SecureSum, Tally, ideal, run_locally
from koinon.secure.local import PHASES
from tests.secure.world import stream


def updates(clients, length=7, seed=0):
    return torch.rand(clients, length, generator=generator(seed, "updates")) * 2 - 1


@st.composite
def patterns(draw, clients, share=0.5):
    """Whom each phase silences: few or many, in one phase or spread over all."""
    gone = draw(st.lists(st.integers(0, clients - 1), max_size=int(share * clients), unique=True))
    drop = {}
    for client in gone:
        drop.setdefault(draw(st.sampled_from(PHASES)), []).append(client)
    return drop


def speaking(clients, drop, phase):
    gone = {client for name in PHASES[: PHASES.index(phase) + 1] for client in drop.get(name, ())}
    return [client for client in range(clients) if client not in gone]


def checked(scheme, values, drop, seed=0):
    """The round's result, held to the exact sum and to the ideal run's bits."""
    result = run_locally(scheme, values, drop, seed=seed, entropy=stream(seed))
    survivors = speaking(len(values), drop, "mask")
    assert list(result.survivors) == survivors
    exact = values[survivors].double().sum(0)
    assert (result.sum.double() - exact).abs().max() <= len(survivors) * result.ring.resolution + 1e-5
    assert result.sum.dtype == torch.float32 and result.weight == len(survivors)
    assert torch.equal(ideal(scheme, values, drop, seed=seed).sum, result.sum)
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 12), st.sampled_from([12, 16, 24, 32]), st.data())
def test_every_pattern_in_a_small_federation(clients, bits, data):
    """The oracle counts: each secret has a threshold of neighbours left if, one survivor aside, so many still speak."""
    scheme = SecureSum(clip=1.0, bits=bits)
    drop = data.draw(patterns(clients, share=0.8))
    values = updates(clients, seed=clients)
    try:
        threshold = scheme.sizes(len(speaking(clients, drop, "advertise"))).threshold
    except AdmissionError:
        threshold = clients
    opens = len(speaking(clients, drop, "unmask")) - 1 >= threshold
    if opens and len(speaking(clients, drop, "advertise")) >= scheme.minimum:
        checked(scheme, values, drop)
        return
    for run in (run_locally, ideal):
        with pytest.raises(Unavailable, match=r"\d+ .*(need|minimum|at least)"):
            run(scheme, values, drop)


@settings(max_examples=5, deadline=None)
@given(st.integers(51, 90), st.data())
def test_patterns_in_a_sparse_graph(clients, data):
    scheme = SecureSum(clip=1.0, corrupt=0.02, dropout=0.2, server="curious")
    assert scheme.sizes(clients).neighbours < clients - 1
    checked(scheme, updates(clients), data.draw(patterns(clients, share=0.08)))


@pytest.mark.parametrize(("server", "seed"), [("curious", 1), ("lying", 2)])
def test_two_hundred_clients(server, seed):
    scheme = SecureSum(clip=1.0, bits=24, corrupt=0.05, dropout=0.1, server=server)
    order = torch.randperm(200, generator=generator(seed, "drop")).tolist()
    drop = {
        "advertise": order[:4],
        "share": order[4:8],
        "mask": order[8:14],
        "agree": order[14:17],
        "unmask": order[17:20],
    }
    checked(scheme, updates(200), drop, seed)


def test_too_many_dropouts_in_a_sparse_graph_are_told():
    scheme = SecureSum(clip=1.0, corrupt=0.02, dropout=0.05, server="curious")
    with pytest.raises(
        Unavailable, match=r"\d+ of 60 clients sent masked updates: of the \d+ neighbours of .* are needed"
    ):
        run_locally(scheme, updates(60), {"mask": range(45)})


def test_ids_are_those_of_the_updates():
    values = updates(5)
    named = dict(zip(["ann", "bob", "cyd", "dee", "eve"], values, strict=True))
    result = kn.secure.run_locally(kn.SecureSum(clip=1.0), named, {"mask": ["cyd"]})
    assert result.survivors == ("ann", "bob", "dee", "eve")
    assert run_locally(SecureSum(clip=1.0), list(values), {"mask": ["2"]}).survivors == (0, 1, 3, 4)


def test_weights_and_tallies_travel_with_the_sum():
    scheme = SecureSum(clip=1.0, bits=16, max_weight=50.0, tallies=(Tally(1e6), Tally(100.0, 1e-3)))
    values, weights = updates(6), [1.0, 50.0, 0.0, 12.5, 3.0, 7.0]
    tallies = [(1000.0 * number, -0.5 * number) for number in range(6)]
    for run in (run_locally, ideal):
        result = run(scheme, values, {"mask": [1]}, weights=weights, tallies=tallies)
        assert result.weight == pytest.approx(23.5, abs=1e-4)
        assert result.tallies == pytest.approx((14_000.0, -7.0))
        exact = (values.double() * torch.tensor(weights)[:, None])[[0, 2, 3, 4, 5]].sum(0)
        assert (result.sum - exact).abs().max() <= 5 * result.ring.resolution


def test_equal_seeds_give_equal_bits_whatever_the_keys():
    scheme = SecureSum(clip=1.0, bits=12)
    first, second = (run_locally(scheme, updates(4), seed=3, entropy=stream(keys)) for keys in "ab")
    assert torch.equal(first.sum, second.sum)
    assert not torch.equal(first.sum, run_locally(scheme, updates(4), seed=4).sum)


def test_a_round_says_what_it_sends():
    result = run_locally(SecureSum(clip=1.0, bits=16), torch.zeros(3, 100_000))
    assert 200_000 < result.bytes_up < 220_000


def test_updates_beyond_the_clip_are_cut_off():
    result = run_locally(SecureSum(clip=0.5), torch.tensor([[2.0, -2.0], [0.25, 0.5], [-0.5, 0.0]]))
    assert result.sum.tolist() == pytest.approx([0.25, 0.0], abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused(bad):
    values = updates(4)
    values[2, 3] = bad
    for run in (run_locally, ideal):
        with pytest.raises(ClientFailed, match="not finite"):
            run(SecureSum(clip=1.0), values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"updates": [torch.zeros(3), torch.zeros(3), torch.zeros(2)]}, "all of one length"),
        ({"updates": torch.zeros(2, 3)}, "minimum=3"),
        ({"drop": {"sleep": [1]}}, "no phase 'sleep'"),
        ({"drop": {"mask": [9]}}, "nobody's id"),
        ({"weights": [1.0, 1.0, 2.0]}, "max_weight"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(AdmissionError, match=message):
        run_locally(SecureSum(clip=1.0), **{"updates": torch.zeros(3, 3), **arguments})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip": 0.0}, "clip"),
        ({"clip": float("inf")}, "clip"),
        ({"bits": 33}, "bits"),
        ({"bits": 1}, "bits"),
        ({"step": 1e-3, "bits": 8}, "needs bits=13"),
        ({"step": 1e-12}, "larger step"),
        ({"max_weight": 0.0}, "max_weight"),
        ({"corrupt": 1.0}, "corrupt"),
        ({"dropout": -0.1}, "dropout"),
        ({"minimum": 1}, "hides nothing"),
        ({"server": "kind"}, "lying"),
        ({"security": 0}, "security"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(fields, message):
    with pytest.raises(AdmissionError, match=message):
        SecureSum(**{"clip": 1.0, **fields})


def test_a_cohort_that_would_overflow_is_refused_with_the_bits_it_needs():
    scheme = SecureSum(clip=1.0, bits=12, step=0.01)
    scheme.admit(20)
    with pytest.raises(AdmissionError, match="needs bits=13"):
        scheme.admit(21)
    with pytest.raises(AdmissionError, match="needs bits=13"):
        run_locally(scheme, torch.zeros(21, 3))
    run_locally(SecureSum(clip=1.0, bits=13, step=0.01), torch.ones(21, 3))


@pytest.mark.parametrize("drop", [{}, {"share": [2, 11], "mask": [5], "unmask": [19]}])
def test_groups_have_a_sum_each(drop):
    scheme = SecureSum(clip=1.0, group_size=6)
    values = updates(26)
    result = run_locally(scheme, values, drop, entropy=stream(0))
    assert len(result.groups) == 4
    for group in result.groups:
        exact = values[list(group.survivors)].double().sum(0)
        assert (group.sum - exact).abs().max() <= len(group.survivors) * result.ring.resolution + 1e-6
        assert group.weight == len(group.survivors)
    assert list(result.survivors) == speaking(26, drop, "mask")
    assert (result.sum - values[list(result.survivors)].double().sum(0)).abs().max() < 1e-5
    assert torch.allclose(ideal(scheme, values, drop).sum, result.sum, atol=1e-5)


def test_groups_are_drawn_anew_with_every_key():
    scheme = SecureSum(clip=1.0, group_size=3)
    drawn = [
        {group.survivors for group in run_locally(scheme, updates(9), entropy=stream(key)).groups} for key in "abc"
    ]
    assert all(len(groups) == 3 for groups in drawn)
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]


def test_a_group_that_cannot_be_opened_ends_by_itself():
    scheme, values = SecureSum(clip=1.0, group_size=5), updates(15)
    first, *others = run_locally(scheme, values, entropy=stream(0)).groups
    result = run_locally(scheme, values, {"mask": first.survivors[:3]}, entropy=stream(0))
    assert {group.survivors for group in result.groups} == {group.survivors for group in others}
    with pytest.raises(Unavailable, match="0 clients sent masked"):
        run_locally(scheme, values, {"mask": range(14)}, entropy=stream(0))


@pytest.mark.parametrize(("clients", "sizes"), [(5, (5,)), (9, (9,)), (10, (5, 5)), (14, (7, 7)), (17, (6, 6, 5))])
def test_groups_are_as_equal_as_can_be(clients, sizes):
    assert SecureSum(clip=1.0, group_size=5).groups(clients) == sizes


def test_groups_that_cannot_work_are_refused():
    with pytest.raises(AdmissionError, match="below minimum=3"):
        SecureSum(clip=1.0, group_size=2)
    with pytest.raises(AdmissionError, match="no group of 5"):
        SecureSum(clip=1.0, group_size=5).admit(4)
