"""The server's rules, for every order in which nodes come, go, answer and fall silent."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from koinon.protocol.events import (
    Arrived,
    Close,
    Closed,
    Contested,
    Disconnect,
    Expect,
    HandedOver,
    Joined,
    Left,
    Persist,
    Received,
    RoundExtended,
    RoundOpened,
    RunEnded,
    Send,
    Settled,
    Stopped,
    Stream,
    Tick,
)
from koinon.protocol.lineage import leading
from koinon.protocol.messages import (
    Accepted,
    Blob,
    Chunk,
    Declined,
    Delivered,
    Delta,
    Failed,
    Finished,
    Heartbeat,
    Leave,
    Offer,
    Probe,
    Ready,
    Refused,
    Task,
)
from koinon.protocol.session import LONGEST_TICK_S, PROBE_S, restored, step
from koinon.protocol.state import SessionState, Terms, waiting_for

NODES = ("a", "b", "c", "d")
SIZE = 32


def blob(round, letter="e"):
    return Blob(f"{round:x}" * 63 + letter, SIZE)


def everyone(round, candidates):
    return list(candidates)


def terms(**changes):
    return replace(Terms(rounds=2, draw=everyone, minimum_nodes=2, deadline_s=60.0, silence_s=45.0), **changes)


def offer(round=1, letter="0"):
    return Offer(round, Blob(letter * 64, SIZE), 1.0, 1, {}, 0.0)


class Run:
    """A session that is told events one by one."""

    def __init__(self, terms, state=None):
        self.terms = terms
        self.state = SessionState(blob(0)) if state is None else state

    def __call__(self, *events):
        effects = []
        for event in events:
            self.state, new = step(self.terms, self.state, event)
            effects.extend(new)
        return effects

    def join(self, *nodes, ready=Ready()):
        return self(*(Joined(node, ready) for node in nodes))

    def answer(self, node, round=1):
        return self(Received(node, offer(round)), Arrived(node, round, "0" * 64))

    def close(self):
        return self(Closed(self.state.round.number, blob(self.state.round.number)))

    def pass_time(self, seconds, *heard):
        start = self.state.world or 0.0
        effects = self(Tick(start))
        for second in range(1, seconds + 1):
            effects += self(*(Received(node, Heartbeat()) for node in heard), Tick(start + second))
        return effects


def sent(effects, kind):
    return {
        effect.node: effect.message
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, kind)
    }


class AnySession(RuleBasedStateMachine):
    """Whatever happens: rounds go forward, what is promised was written before, and nobody is asked who is away."""

    def __init__(self):
        super().__init__()
        self.run = Run(terms(rounds=3))
        self.number = 0
        self.outcomes = {}
        self.close = None
        self.ended = None
        self.clock = 0.0

    def tell(self, event):
        before = self.run.state
        for effect in self.run(event):
            match effect:
                case Persist(RoundOpened() as record):
                    assert record.round == self.number + 1 and self.close is None and self.ended is None
                    self.number = record.round
                case Persist(Settled() as record):
                    assert record.round == self.number and (record.round, record.node) not in self.outcomes
                    self.outcomes[record.round, record.node] = record.outcome
                case Persist(RunEnded() as record):
                    assert self.ended is None
                    self.ended = record.status
                case Send(node, Accepted(round)):
                    assert self.outcomes[round, node] == "accepted"
                case Send(node, Task(round, model)):
                    assert (round, model) == (self.number, self.run.state.model)
                    assert self.run.state.members[node].here and node in self.run.state.round.cohort
                case Send(_, Finished()):
                    assert self.ended == "finished"
                case Close():
                    assert self.close is None and effect.round == self.number
                    self.close = effect
        assert self.run.state.now >= before.now

    nodes = st.sampled_from(NODES)

    @rule(node=nodes)
    def joins(self, node):
        self.tell(Joined(node, Ready()))

    @rule(node=nodes)
    def is_cut(self, node):
        self.tell(Left(node))

    @rule(node=nodes)
    def is_contested(self, node):
        self.tell(Contested(node))

    @rule(node=nodes, letter=st.sampled_from("01"), late=st.integers(-1, 0))
    def offers(self, node, letter, late):
        self.tell(Received(node, offer(max(0, self.number + late), letter)))

    @rule(node=nodes, fault=st.sampled_from((None, None, "NaN")))
    def arrives(self, node, fault):
        self.tell(Arrived(node, self.number, "0" * 64, fault))

    @rule(node=nodes, kind=st.sampled_from((Declined, Failed)))
    def gives_up(self, node, kind):
        self.tell(Received(node, kind(self.number, "no")))

    @rule(node=nodes)
    def leaves(self, node):
        self.tell(Received(node, Leave("")))

    @rule(node=nodes, letter=st.sampled_from("ef"))
    def has_the_final_model(self, node, letter):
        self.tell(Received(node, Delivered(blob(self.number, letter).digest, {})))

    @rule(seconds=st.floats(-1e6, 1e6))
    def time_passes(self, seconds):
        self.clock += seconds
        self.tell(Tick(self.clock))

    @precondition(lambda self: self.close is not None)
    @rule()
    def is_added_up(self):
        event, self.close = Closed(self.close.round, blob(self.close.round)), None
        self.tell(event)

    @invariant()
    def it_says_what_it_waits_for(self):
        state = self.run.state
        assert state.completed <= 3
        if state.status == "running":
            assert waiting_for(self.run.terms, state) or (state.round is None and len(state.present) >= 2)


AnySession.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnySession = AnySession.TestCase


def test_a_round_opens_when_enough_are_here_and_the_cohort_is_written_first():
    run = Run(terms())
    assert run.join("b") == []
    assert waiting_for(run.terms, run.state) == "1 more node to join"
    first, *rest = run.join("a")
    assert first == Persist(RoundOpened(1, ("a", "b"), 2, 2))
    task = Task(1, blob(0), 2, 60.0)
    assert rest == [Send("a", task), Stream("a", blob(0), 0), Send("b", task), Stream("b", blob(0), 0)]
    assert waiting_for(run.terms, run.state) == "updates for round 1 from a, b"


@pytest.mark.parametrize(
    ("ready", "streamed"),
    [
        (Ready(), [0]),
        (Ready(model=blob(0).digest, offset=12), [12]),
        (Ready(model=blob(0).digest, offset=SIZE), []),
        (Ready(model=blob(5).digest, offset=12), [0]),
        (Ready(trained=1), []),
    ],
)
def test_a_node_is_sent_only_what_it_lacks(ready, streamed):
    effects = Run(terms(minimum_nodes=1)).join("a", ready=ready)
    assert [effect.offset for effect in effects if isinstance(effect, Stream)] == streamed


@pytest.mark.parametrize(
    ("cohort", "over_selection", "quorum", "wanted", "needed"),
    [(12, 0.2, 1.0, 10, 10), (10, 0.0, 0.8, 10, 8), (3, 0.0, 1e-12, 3, 1), (3, 1e12, 1.0, 1, 1), (2, 1.0, 0.5, 1, 1)],
)
def test_how_many_are_wanted_and_needed(cohort, over_selection, quorum, wanted, needed):
    run = Run(terms(minimum_nodes=cohort, over_selection=over_selection, quorum=quorum))
    effects = run.join(*(f"{index:02d}" for index in range(cohort)))
    opened = effects[0].record
    assert (opened.wanted, opened.needed) == (wanted, needed)


def test_rounds_follow_each_other_and_the_last_model_is_handed_over():
    run = Run(terms())
    run.join("a", "b")
    run.answer("a")
    assert run.answer("b")[-1] == Close(1, ("a", "b"), (offer(), offer()))
    assert waiting_for(run.terms, run.state) == "round 1 to be added up"
    assert run.close()[0].record.round == 2
    run.answer("a", 2)
    run.answer("b", 2)
    effects = run.close()
    assert effects[0] == Persist(RunEnded("finished", ""))
    assert sent(effects, Finished) == dict.fromkeys("ab", Finished(2, blob(2)))
    assert waiting_for(run.terms, run.state) == "a, b to fetch the final model"
    delivered = Delivered(blob(2).digest, {})
    assert run(Received("a", delivered)) == [
        Persist(HandedOver("a", delivered)),
        Disconnect("a", "the run is over", final=True),
    ]
    assert waiting_for(run.terms, run.state) == "b to fetch the final model"
    run(Received("b", delivered))
    assert waiting_for(run.terms, run.state) == ""


def test_a_node_that_restarts_after_the_end_is_told_of_the_final_model_again():
    run = Run(terms(rounds=1, minimum_nodes=1))
    run.join("a")
    run.answer("a")
    run.close()
    run(Received("a", Delivered(blob(1).digest, {})), Left("a"))
    assert sent(run.join("a", ready=Ready(model=blob(1).digest, offset=SIZE)), Finished) == {"a": Finished(1, blob(1))}


def test_a_round_that_was_closed_is_not_closed_again():
    run = Run(terms())
    run.join("a", "b")
    run.answer("a")
    run.answer("b")
    run.close()
    before = run.state
    assert run(Closed(1, blob(7))) == [] and run.state == before


def test_a_node_that_comes_back_is_given_what_it_owes():
    run = Run(terms())
    run.join("a", "b")
    run.answer("a")
    run(Left("b"), Left("a"))
    assert sent(run.join("a", "b"), Task).keys() == {"b"}


def test_too_few_at_the_deadline_and_others_are_asked():
    run = Run(terms(quorum=1.0))
    run.join("a", "b")
    run.answer("a")
    assert run.pass_time(59, "a", "b") == [Send(node, Heartbeat()) for _ in range(59) for node in "ab"]
    run.pass_time(1, "a", "b")
    effects = run.join("c")
    assert effects[0] == Persist(RoundExtended(1, ("c",)))
    assert sent(effects, Task).keys() == {"c"}
    assert run.answer("c")[-1] == Close(1, ("a", "c"), (offer(), offer()))


def test_others_are_asked_at_once_when_all_have_answered_and_too_few_count():
    run = Run(terms(draw=lambda round, candidates: list(candidates)[:2]))
    run.join("a", "b", "c")
    run.answer("a")
    effects = run(Received("b", Failed(1, "no memory")))
    assert sent(effects, Task).keys() == {"c"}


def test_an_extension_asks_somebody_even_where_sampling_chooses_nobody():
    drawn = iter((["a", "b"], []))
    run = Run(terms(draw=lambda round, candidates: next(drawn)))
    run.join("a", "b")
    run.answer("a")
    run.join("c")
    assert sent(run(Received("b", Failed(1, "no memory"))), Task).keys() == {"c"}


def test_a_cohort_of_nobody_passes_with_the_model_as_it_is():
    run = Run(terms(draw=lambda round, candidates: []))
    assert run.join("a", "b") == [Persist(RoundOpened(1, (), 0, 0)), Close(1, (), ())]


def test_nobody_left_to_ask_is_said():
    run = Run(terms())
    run.join("a", "b")
    run.answer("a")
    run(Received("b", Declined(1, "not today")))
    assert (
        waiting_for(run.terms, run.state)
        == "a node that has not been asked for round 1; all others failed, declined or left"
    )
    assert sent(run.join("c"), Task).keys() == {"c"}


def test_a_silent_node_is_cut_and_one_that_beats_is_not():
    run = Run(terms(deadline_s=1000.0))
    run.join("a", "b")
    cut = [effect for effect in run.pass_time(100, "a") if isinstance(effect, Disconnect)]
    assert [(effect.node, effect.final) for effect in cut] == [("b", False)]
    assert "nothing heard for 45 s" in cut[0].reason
    assert run.state.present == ["a"]


def test_a_contested_node_stays_if_it_answers_and_goes_if_it_does_not():
    run = Run(terms(deadline_s=1000.0))
    run.join("a", "b")
    run(Tick(0.0))
    assert run(Contested("a"), Contested("b"), Contested("a")) == [Send("a", Probe()), Send("b", Probe())]
    run(Received("a", Heartbeat()), Tick(PROBE_S))
    assert run.state.present == ["a"]
    assert run(Contested("stranger")) == []


def test_one_that_leaves_is_not_waited_for():
    run = Run(terms(quorum=0.5))
    run.join("a", "b")
    run.answer("a")
    effects = run(Received("b", Leave("holiday")))
    assert effects[0] == Disconnect("b", "until next time", final=True)
    assert effects[1].record == Settled(1, "b", "declined", "left: holiday")
    assert effects[-1] == Close(1, ("a",), (offer(),))


@given(st.lists(st.floats(-1e9, 1e9), max_size=30))
def test_the_sessions_clock_neither_jumps_nor_goes_back(times):
    run = Run(terms())
    for time in times:
        before = run.state.now
        run(Tick(time))
        assert before <= run.state.now <= before + LONGEST_TICK_S


@pytest.mark.parametrize("message", [Ready(), Chunk("0" * 64, 0, b"x")])
def test_a_message_out_of_place_ends_the_connection(message):
    run = Run(terms())
    run.join("a")
    (effect,) = run(Received("a", message))
    assert effect == Disconnect("a", f"{type(message).__name__} was not expected here", final=False)


def test_one_that_has_not_joined_is_not_heard():
    (effect,) = Run(terms())(Received("a", Heartbeat()))
    assert isinstance(effect, Disconnect)


def test_an_offer_between_rounds_is_refused():
    run = Run(terms())
    run.join("a")
    reason = "round 1 is not open; 0 rounds are closed"
    assert run(Received("a", offer())) == run(Arrived("a", 1, "0" * 64)) == [Send("a", Refused(1, reason))]


def test_a_stopped_run_sends_everyone_home_and_stays_stopped():
    run = Run(terms())
    run.join("a", "b")
    effects = run(Stopped("enough"))
    assert effects[0] == Persist(RunEnded("aborted", "enough"))
    assert {effect.node for effect in effects[1:] if effect.final} == {"a", "b"}
    assert run(Closed(1, blob(1)), Stopped("again")) == []
    assert run(Joined("c", Ready())) == [Disconnect("c", "the run was aborted: enough", final=True)]


def restart(**changes):
    arguments = {"model": blob(0), "completed": 0, "status": "running", "open_round": None, "nodes": {}}
    state, effects = restored(terms(), **(arguments | changes))
    return Run(terms(), state), effects


OPENED = RoundOpened(1, ("a", "b"), 2, 2)


def test_a_restart_goes_on_in_the_same_round_with_what_was_acknowledged():
    settled = Settled(1, "a", "accepted", "", offer())
    run, effects = restart(
        open_round=(OPENED, (RoundExtended(1, ("c",)),), (settled,), ()), nodes={"a": False, "b": False}
    )
    assert effects == ()
    assert sent(run.join("a", "b", "c", "d"), Task).keys() == {"b", "c"}
    assert run(Received("a", offer())) == [Send("a", Accepted(1))]
    assert run.answer("b")[-1].accepted == ("a", "b")


def test_a_restart_closes_a_round_that_was_complete():
    settled = tuple(Settled(1, node, "accepted", "", offer()) for node in "ab")
    _, effects = restart(open_round=(OPENED, (), settled, ()))
    assert effects == (Close(1, ("a", "b"), (offer(), offer())),)
    _, effects = restart(open_round=(RoundOpened(1, (), 0, 0), (), (), ()))
    assert effects == (Close(1, (), ()),)


def test_a_restart_after_the_last_round_ends_the_run_and_opens_no_other():
    run, effects = restart(model=blob(2), completed=2, nodes={"a": False})
    assert effects == (Persist(RunEnded("finished", "")),)
    assert sent(run.join("a", "b"), Finished).keys() == {"a", "b"}


def test_a_restart_does_not_revive_what_was_aborted():
    run, effects = restart(status="aborted", open_round=(OPENED, (), (), ()))
    assert effects == () and run.state.round is None
    assert [type(effect) for effect in run.join("a", "b")] == [Disconnect, Disconnect]


def test_expected_updates_are_only_those_of_the_cohort():
    run = Run(terms())
    run.join("a", "b", "c")
    assert run(Received("a", offer())) == [Expect("a", offer())]
    (refusal,) = run(Received("c", offer()))
    assert "c was not asked" in refusal.message.reason


def changed(round, size=1):
    return Delta(blob(round - 1).digest, round, Blob(f"{round + 8:x}" * 64, size))


def test_who_holds_an_earlier_model_is_sent_what_changed_and_the_model_if_that_does_not_lead_there():
    run = Run(terms(rounds=9))
    run.join("a", "b")
    run.answer("a"), run.answer("b")
    effects = run(Closed(1, blob(1), delta=changed(1)))
    assert sent(effects, Task)["a"].deltas == (changed(1),)
    assert [effect.blob for effect in effects if isinstance(effect, Stream)] == [changed(1).change] * 2
    again = run(Received("a", Ready()))
    assert sent(again, Task)["a"].deltas == () and [effect.blob for effect in again if isinstance(effect, Stream)] == [
        blob(1)
    ]
    assert any(isinstance(effect, Disconnect) for effect in run(Received("a", Ready()))), "once is enough"


def test_who_brings_an_update_and_lost_its_model_is_sent_the_final_one_even_if_that_is_the_same():
    run = Run(terms(rounds=1))
    run.join("a", "b")
    run(Left("a"))
    run.join("a", ready=Ready(blob(0).digest, 7, trained=1))
    run.answer("a")
    run.answer("b")
    effects = run(Closed(1, blob(0)))
    assert [(effect.node, effect.offset) for effect in effects if isinstance(effect, Stream)] == [("a", 7)]


def test_changes_that_are_together_as_long_as_the_model_are_not_kept():
    size = blob(0).size
    kept = leading((changed(1, size - 2), changed(2, 1)), changed(3, 1), blob(3))
    assert kept == (changed(2, 1), changed(3, 1))
    assert leading((changed(1, 1),), None, blob(2)) == () == leading((), changed(1, size), blob(1))
