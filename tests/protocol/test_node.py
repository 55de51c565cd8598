"""A node's rules: one round is trained once, and nothing is forgotten before the server has it."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from koinon.protocol.messages import (
    Accepted,
    Blob,
    Chunk,
    Continue,
    Declined,
    Delivered,
    Failed,
    Finished,
    Goodbye,
    Heartbeat,
    Offer,
    Probe,
    Ready,
    Refused,
    Task,
    Welcome,
)
from koinon.protocol.node import (
    Connected,
    Download,
    Downloaded,
    Entry,
    Evaluate,
    Evaluated,
    GaveUp,
    Lost,
    NodeState,
    Quit,
    Received,
    Remember,
    Say,
    TakeBack,
    Train,
    Trained,
    Upload,
    step,
)


def model(round):
    return Blob(f"{round:x}" * 64, 32)


def task(round=1, start=None):
    return Task(round, start or model(round), 3, 60.0)


def offer(round=1, letter="a"):
    return Offer(round, Blob(letter * 64, 32), 1.0, 1, {}, 0.0)


class Node:
    """A node's state machine that is told events one by one."""

    def __init__(self, state=NodeState()):
        self.state = state

    def __call__(self, *events):
        effects = []
        for event in events:
            self.state, new = step(self.state, event)
            effects.extend(new)
        return effects

    def hears(self, *messages):
        return self(*map(Received, messages))

    def trains(self, round=1, letter="a"):
        return self(Received(task(round)), Downloaded(model(round).digest), Trained(offer(round, letter)))

    def restarted(self):
        return Node(NodeState(journal=self.state.journal))


messages = st.one_of(
    st.builds(task, st.integers(1, 4)),
    st.builds(Accepted, st.integers(1, 4)),
    st.builds(Refused, st.integers(1, 4), st.just("late")),
    st.builds(Continue, st.integers(1, 4), st.just(0)),
    st.just(Heartbeat()),
)
happenings = st.lists(st.one_of(messages, st.sampled_from(("downloaded", "trained", "gave up", "lost", "restart"))))


@given(happenings)
def test_whatever_happens_a_round_is_offered_with_one_set_of_bytes_that_were_remembered_before(happenings):
    node, durable, offered, running, letters = Node(), {}, {}, [], iter("0123456789abcdef" * 20)
    for happening in happenings:
        match happening:
            case "downloaded":
                wanted = node.state.task
                effects = node(Downloaded(wanted.model.digest)) if wanted else []
            case "trained":
                effects = node(Trained(offer(running.pop(0), next(letters)))) if running else []
            case "gave up":
                effects = node(GaveUp(Failed(running.pop(0), "no"))) if running else []
            case "lost":
                effects = node(Lost(), Connected(None, 0))
            case "restart":
                node, running = Node(NodeState(journal=dict(durable))), []
                effects = node(Connected(None, 0))
            case message:
                effects = node.hears(message)
        for effect in effects:
            match effect:
                case Remember(round, entry):
                    durable[round] = entry
                case Say(Offer() as said):
                    assert durable[said.round].offer == said, "in the journal before the server hears of it"
                    assert offered.setdefault(said.round, said) == said, "never a second draw"
                case Upload(said, _):
                    assert durable[said.round].offer == said
                case Train(asked):
                    running.append(asked.round)
        assert node.state.journal == durable


def test_the_whole_way_of_an_update():
    node = Node()
    assert node(Connected(None, 0)) == [Say(Ready(None, 0, 0))]
    assert node.hears(task()) == [Download(model(1))]
    assert node(Downloaded(model(1).digest)) == [Train(task())]
    assert node(Trained(offer())) == [Remember(1, Entry(model(1).digest, offer())), Say(offer())]
    assert node.hears(Continue(1, 16)) == [Upload(offer(), 16)]
    assert node.hears(Accepted(1)) == [Remember(1, Entry(model(1).digest, None))]
    assert node.hears(Continue(1, 0), Accepted(1), Refused(1, "late")) == []


def test_what_a_refused_update_took_with_it_is_taken_back_before_it_is_forgotten():
    node = Node()
    node.trains()
    assert node.hears(Refused(1, "late")) == [TakeBack(1), Remember(1, Entry(model(1).digest, None))]
    assert node.hears(Refused(1, "late")) == []


def test_after_a_crash_the_same_bytes_are_offered():
    node = Node()
    node.trains()
    node = node.restarted()
    assert node(Connected("0" * 64, 7)) == [Say(Ready("0" * 64, 7, 1))]
    assert node.hears(task()) == [Say(offer())]


def test_a_server_that_asks_again_from_another_model_gets_nothing():
    node = Node()
    node.trains()
    (said,) = node.hears(task(1, model(9)))
    assert said == Say(Failed(1, "round 1 was asked before, from another model"))
    node.hears(Accepted(1))
    assert node.hears(task()) == [Say(Failed(1, "round 1 was delivered before"))]


def test_training_goes_on_while_the_connection_is_down():
    node = Node()
    node.hears(task())
    node(Downloaded(model(1).digest))
    assert node(Lost(), Connected(model(1).digest, 32))[0].message.trained == 0
    assert node.hears(task()) == [], "it is trained already"
    assert node(Trained(offer()))[-1] == Say(offer())


def test_a_download_goes_on_after_a_cut():
    node = Node()
    node.hears(task())
    node(Lost())
    assert node.hears(task()) == [Download(model(1))]


def test_what_it_could_not_do_is_said_again():
    node = Node()
    node.hears(task())
    node(Downloaded(model(1).digest))
    answer = Declined(1, "too small a cohort")
    assert node(GaveUp(answer)) == [Say(answer)] == node.hears(task())
    assert node.hears(task(2)) == [Download(model(2))]


def test_a_refused_task_is_dropped_and_its_training_comes_to_nothing():
    node = Node()
    node.hears(task())
    node(Downloaded(model(1).digest))
    assert node.hears(Refused(1, "late")) == []
    assert node(Trained(offer())) == []


def test_a_later_round_ends_what_was_offered_before():
    node = Node()
    node.trains(1)
    forgotten = Remember(1, Entry(model(1).digest, None))
    assert node.hears(task(3)) == [forgotten, Download(model(3))]
    node = Node()
    node.trains(1)
    assert node.hears(Finished(1, model(2))) == [forgotten, Download(model(2))]


def test_the_end_of_the_run():
    node = Node()
    final = model(5)
    node.hears(task())
    assert node.hears(Finished(4, final)) == [Download(final)]
    assert node(Trained(offer())) == [], "too late"
    assert node(Downloaded(final.digest)) == [Evaluate(final)]
    assert node(Evaluated(model(6).digest, {})) == []
    assert node(Evaluated(final.digest, {})) == [Say(Delivered(final.digest, {}))]
    assert node.hears(Goodbye("the run is over", True)) == [Quit("the run is over", finished=True)]


def test_a_goodbye_that_is_not_final_ends_nothing():
    node = Node()
    assert node.hears(Goodbye("the disk is full", False)) == []
    assert node.hears(Goodbye("revoked", True)) == [Quit("revoked", finished=False)]


def test_a_probe_is_answered_and_the_rest_is_not():
    node = Node()
    assert node.hears(Probe()) == [Say(Heartbeat())]
    before = replace(node.state)
    assert node.hears(Heartbeat(), Chunk("0" * 64, 0, b"x"), Welcome("a", "run", 1, 0), Continue(1, 0)) == []
    assert node(Downloaded("0" * 64)) == [] and node.state == before
