"""What a secure sum needs of the rest of a strategy, and how many clients it needs."""

import pytest

import koinon as kn
from koinon.core.errors import AdmissionError

SECURE = kn.SecureSum(clip=1.0)


def strategy(**arguments) -> kn.Strategy:
    return kn.fedavg(**({"stages": (), "secure": SECURE} | arguments))


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"secure": kn.SecureSum(clip=1.0, tallies=(1.0,))}, "give SecureSum no tallies and no noise"),
        ({"secure": kn.SecureSum(clip=1.0, noise=1.0, step=1e-3)}, "give SecureSum no tallies and no noise"),
        ({"sample": kn.RoundRobin(2)}, "below minimum=3"),
        ({"stages": (kn.Weight(),)}, r"Weight\(at_most=examples\)\), or no Weight"),
        ({"secure": kn.SecureSum(clip=1.0, group_size=3), "sample": kn.RoundRobin(8), "reducer": kn.TrimmedMean(1)}, "3 updates"),
        ({"secure": None, "stages": (kn.Clip(1.0), kn.SkellamNoise(1.0, 10))}, r"give secure=SecureSum\(clip=…\)"),
    ],
)  # fmt: skip
def test_what_a_sum_cannot_bear_is_refused_in_one_line_with_the_cure(arguments, cure):
    with pytest.raises(AdmissionError, match=cure) as refusal:
        strategy(**arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("sample", [kn.Everyone(), kn.Uniform(3), kn.RoundRobin(3)])
def test_who_is_sure_to_draw_enough_is_let_in(sample):
    assert strategy(sample=sample).scheme is not None


def test_the_sum_has_room_for_the_largest_weight_that_the_stages_allow():
    assert strategy().scheme == SECURE
    assert strategy(stages=(kn.Weight(at_most=500),)).scheme == kn.SecureSum(clip=1.0, max_weight=500)
    assert strategy(secure=None).scheme is None


@pytest.mark.parametrize(
    "secure",
    [SECURE, kn.SecureSum(clip=1.0, minimum=5), kn.SecureSum(clip=1.0, minimum=7, corrupt=0.3, dropout=0.1)],
)
def test_the_least_is_the_smallest_number_that_can_be_added_up(secure):
    least = strategy(secure=secure).least
    secure.admit(least)
    assert least >= secure.minimum
    for fewer in range(secure.minimum, least):
        with pytest.raises(AdmissionError):
            secure.admit(fewer)


def test_a_rule_over_groups_needs_as_many_groups_as_it_would_need_updates():
    grouped = kn.SecureSum(clip=1.0, group_size=4)
    for reducer, rows in ((kn.Mean(), 1), (kn.TrimmedMean(1), 3), (kn.TrimmedMean(2), 5)):
        over = strategy(secure=grouped, reducer=reducer)
        assert (over.least_rows, over.least) == (rows, 4 * rows)
    assert strategy(secure=None, reducer=kn.TrimmedMean(2)).least == 5


def test_shares_that_no_number_of_clients_can_bear_are_told():
    strategy = kn.fedavg(stages=(), secure=kn.SecureSum(clip=1.0, corrupt=0.5, dropout=0.5))
    with pytest.raises(AdmissionError, match="no number of clients can be added up with these shares"):
        print(strategy.least)
