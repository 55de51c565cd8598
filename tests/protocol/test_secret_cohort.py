"""Rounds whose cohort is secret: exactly who was drawn takes part, and nobody learns how many they are."""

from koinon.protocol.events import Close, Joined, Persist, Received, RoundOpened, Send, Tick
from koinon.protocol.messages import Blob, Failed, Ready, Task
from koinon.protocol.session import step
from koinon.protocol.state import SessionState, Terms

NODES = [f"node-{number}" for number in range(6)]
DRAWN = NODES[:2]


def opened(secret: int | None) -> tuple[Terms, SessionState, list]:
    terms = Terms(3, lambda round, sizes: [node for node in sizes if node in DRAWN], 6, secret_cohort=secret)
    state, effects = SessionState(Blob("a" * 64, 8)), []
    for node in NODES:
        state, more = step(terms, state, Joined(node, Ready()))
        effects.extend(more)
    return terms, state, effects


def test_nodes_are_told_the_expected_number() -> None:
    for secret, told in ((None, 2), (3, 3)):
        _, _, effects = opened(secret)
        tasks = [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Task)]
        assert [task.cohort for task in tasks] == [told, told]


def failing(secret: int | None) -> tuple[SessionState, list]:
    """Everyone who was asked fails."""
    terms, state, effects = opened(secret)
    for node in DRAWN:
        state, more = step(terms, state, Received(node, Failed(1, "no")))
        effects.extend(more)
    return state, effects


def test_a_round_closes_with_whoever_answered_even_nobody() -> None:
    _, effects = failing(3)
    assert Close(1, (), ()) in effects
    state, effects = failing(None)
    assert not any(isinstance(effect, Close) for effect in effects) and state.round is not None


def test_nobody_is_asked_who_was_not_drawn() -> None:
    terms, state, effects = opened(3)
    state, more = step(terms, state, Tick(0.0))
    for second in range(1, 100):
        state, later = step(terms, state, Tick(10.0 * second))
        more = (*more, *later)
        if state.round is None or state.round.closing:
            break
    asked = {
        effect.node for effect in (*effects, *more) if isinstance(effect, Send) and isinstance(effect.message, Task)
    }
    assert asked == set(DRAWN)
    assert Close(1, (), ()) in more
    opening = [effect.record for effect in effects if isinstance(effect, Persist)]
    assert opening == [RoundOpened(1, tuple(DRAWN), 2, 0)]
