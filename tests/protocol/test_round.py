"""One round's rules, for every order in which things can happen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from koinon.core.types import canonical
from koinon.protocol import round as rounds
from koinon.protocol.events import Arrived, Close, Expect, Persist, RoundExtended, Send, Settled
from koinon.protocol.messages import Accepted, Blob, Declined, Failed, Offer, Refused
from koinon.protocol.round import RoundState

SIZE = 32
NODES = ("a", "b", "c", "d")


def offer(letter="0", round=1, size=SIZE):
    return Offer(round, Blob(letter * 64, size), 1.0, 1, {}, 0.0)


def opened(cohort=("a", "b", "c"), wanted=3, needed=2):
    return RoundState(1, cohort, wanted, needed, deadline=10.0)


def refused(effects):
    (reason,) = [
        effect.message.reason
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, Refused) and "closed" not in effect.message.reason
    ]
    return reason


def accept(state, node, letter="0"):
    state, _ = rounds.offered(state, node, offer(letter), SIZE)
    return rounds.arrived(state, Arrived(node, 1, letter * 64))


events = st.one_of(
    st.tuples(st.just("offer"), st.sampled_from(NODES), st.sampled_from("01"), st.sampled_from((1, 1, 1, 0, 2))),
    st.tuples(st.just("arrive"), st.sampled_from(NODES), st.sampled_from("01"), st.sampled_from((None, None, "NaN"))),
    st.tuples(st.just("answer"), st.sampled_from(NODES), st.sampled_from((Declined, Failed)), st.sampled_from((1, 2))),
    st.tuples(st.just("expire"), st.floats(0, 30), st.none(), st.none()),
    st.tuples(st.just("extend"), st.sets(st.sampled_from(NODES)), st.none(), st.none()),
)


def happen(state, event):
    match event:
        case "offer", node, letter, number:
            return rounds.offered(state, node, offer(letter, number), SIZE)
        case "arrive", node, letter, fault:
            return rounds.arrived(state, Arrived(node, 1, letter * 64, fault))
        case "answer", node, kind, number:
            return rounds.answered(state, node, kind(number, "no"))
        case "expire", now, _, _:
            return rounds.expired(state, now)
        case "extend", added, _, _:
            return (state, ()) if state.closing else rounds.extended(state, added, state.deadline + 10)


@given(st.lists(events, max_size=40), st.integers(1, 3), st.integers(1, 3))
def test_no_order_of_events_breaks_the_rules(happenings, wanted, needed):
    state = opened(wanted=max(wanted, needed), needed=needed)
    settled, closed = {}, []
    for event in happenings:
        before = state
        state, effects = happen(state, event)
        for effect in effects:
            match effect:
                case Persist(Settled() as record):
                    assert record.node in state.cohort, "only nodes of the cohort take part"
                    assert record.node not in settled, "a part is settled once"
                    assert not closed, "nothing enters a round that closes"
                    assert (record.offer is not None) == (record.outcome == "accepted")
                    settled[record.node] = record.outcome
                case Send(node, Accepted()):
                    assert settled[node] == "accepted", "acknowledged only once it is on the disk"
                case Close():
                    closed.append(effect)
        assert state.outcomes == settled
        assert set(before.cohort) <= set(state.cohort)
        assert state.closing == bool(closed)
    assert len(closed) <= 1
    for close in closed:
        assert list(close.accepted) == sorted(node for node, outcome in settled.items() if outcome == "accepted")
        assert len(close.accepted) == len(close.offers) >= needed


@given(st.permutations(["a", "b", "c"]))
def test_the_order_of_arrival_does_not_change_the_order_of_adding(order):
    state = opened()
    for node in order:
        state, effects = accept(state, node)
    assert effects[-1] == Close(1, ("a", "b", "c"), (offer(),) * 3)


def test_it_closes_at_as_many_as_wanted_and_tells_the_others():
    state, _ = accept(opened(wanted=2), "a")
    state, effects = accept(state, "c")
    *_, told, close = effects
    assert told == Send("b", Refused(1, "round 1 has closed without it"))
    assert close.accepted == ("a", "c")


def test_it_closes_with_fewer_when_nobody_is_left_to_wait_for():
    state, _ = accept(opened(), "a")
    state, _ = accept(state, "b")
    assert not state.closing
    state, effects = rounds.answered(state, "c", Declined(1, "not today"))
    assert effects[-1] == Close(1, ("a", "b"), (offer(),) * 2)


def test_the_deadline_closes_it_only_with_enough():
    state, _ = accept(opened(), "a")
    assert rounds.expired(state, 11.0) == (state, ())
    state, _ = accept(state, "b")
    assert rounds.expired(state, 9.9) == (state, ())
    assert rounds.expired(state, 10.0)[0].closing


def test_it_is_stuck_when_all_answered_and_too_few_count():
    state, _ = accept(opened(("a", "b")), "a")
    assert not state.stuck
    state, _ = rounds.answered(state, "b", Failed(1, "no memory"))
    assert state.stuck
    state, effects = rounds.extended(state, ["b", "d"], 20.0)
    assert not state.stuck and state.missing == ("d",)
    assert effects == (Persist(RoundExtended(1, ("d",))),)


def test_an_offer_of_another_size_is_refused_and_ends_the_part():
    state, effects = rounds.offered(opened(), "a", offer(size=SIZE + 4), SIZE)
    assert "36 bytes" in refused(effects) and "has 32" in refused(effects)
    assert state.outcomes == {"a": "refused"}


def test_a_second_different_offer_is_refused_and_the_same_one_is_not():
    state, _ = rounds.offered(opened(), "a", offer("0"), SIZE)
    assert rounds.offered(state, "a", offer("0"), SIZE)[1] == (Expect("a", offer("0")),)
    state, effects = rounds.offered(state, "a", offer("1"), SIZE)
    assert "second, different update" in refused(effects)


def test_bytes_that_are_not_sound_are_refused_with_what_is_wrong():
    state, _ = rounds.offered(opened(), "a", offer(), SIZE)
    state, effects = rounds.arrived(state, Arrived("a", 1, "0" * 64, "the update holds NaN or infinite values"))
    assert "NaN" in refused(effects)
    assert effects[0].record.outcome == "refused"


def test_bytes_that_were_not_offered_are_not_counted():
    state, _ = rounds.offered(opened(), "a", offer("0"), SIZE)
    assert rounds.arrived(state, Arrived("a", 1, "1" * 64)) == (state, ())
    assert rounds.arrived(opened(), Arrived("a", 1, "0" * 64))[1] == ()


def test_what_was_accepted_is_acknowledged_again_and_counts_once():
    state, _ = accept(opened(), "a")
    assert rounds.offered(state, "a", offer(), SIZE) == (state, (Send("a", Accepted(1)),))
    assert rounds.arrived(state, Arrived("a", 1, "0" * 64)) == (state, (Send("a", Accepted(1)),))


@pytest.mark.parametrize(
    ("change", "node", "number", "reason"),
    [
        ({}, "d", 1, "d was not asked in round 1"),
        ({}, "a", 2, "round 2 is not open; the server is at round 1"),
        ({"outcomes": {"a": "failed"}}, "a", 1, "the part of a in round 1 has ended: failed"),
    ],
)
def test_what_cannot_enter_is_refused_with_the_reason(change, node, number, reason):
    state = replace(opened(), **change)
    assert rounds.offered(state, node, offer(round=number), SIZE) == (state, (Send(node, Refused(number, reason)),))


def test_what_comes_after_the_closing_is_refused_as_late():
    state = replace(opened(), closing=True)
    late = (Send("a", Refused(1, "round 1 has closed without it")),)
    assert rounds.offered(state, "a", offer(), SIZE) == (state, late)
    assert rounds.arrived(state, Arrived("a", 1, "0" * 64)) == (state, late)
    assert rounds.answered(state, "a", Failed(1, "no")) == (state, ())


@given(st.sets(st.text("ab1", max_size=3)), st.text("ab1", max_size=3), st.booleans())
def test_who_is_of_the_cohort_is_found(names, name, settled):
    state = opened(tuple(canonical(names)))
    state = replace(state, outcomes={name: "failed"} if settled else {})
    assert state.has(name) == (name in names)
    assert state.lacks(name) == (name in state.missing)
