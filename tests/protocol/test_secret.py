"""Rounds that are added up secretly: the session driven with real clients, who fall silent, come back and come late."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.rng import generator
from koinon.protocol import sums
from koinon.protocol.events import (
    Arrived,
    Close,
    Closed,
    Disconnect,
    Expect,
    Joined,
    Left,
    Persist,
    Received,
    RoundOpened,
    RunEnded,
    Send,
    Settled,
    Summed,
    Tick,
)
from koinon.protocol.messages import ATTEMPTS, Blob, Failed, Heartbeat, Leave, Offer, Ready, Refused, Summing, Task
from koinon.protocol.session import restored, step
from koinon.protocol.state import SessionState, Terms, waiting_for
from koinon.secure import client, messages
from koinon.secure.events import Begin, Contribute, Heard, Say, Want
from koinon.secure.hosting import Host
from koinon.secure.party import Party
from koinon.secure.secure_sum import SecureSum
from tests.secure.world import stream

MODEL = Blob("e" * 64, 32)
SCHEME = SecureSum(clip=1.0, dropout=0.2)
LENGTH = 6


class Federation:
    """A session, and the clients of real secure sums that answer it unless they are told to keep silent."""

    def __init__(self, nodes=5, scheme=SCHEME, **terms):
        self.names = tuple(f"n{number}" for number in range(nodes))
        self.entropy = stream(0)
        keys = {name: Ed25519PrivateKey.from_private_bytes(self.entropy(32)) for name in self.names}
        self.trusted = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        self.parties = {name: Party("run", name, key.sign, self.trusted, scheme, LENGTH) for name, key in keys.items()}
        self.clients = dict.fromkeys(self.names, client.ClientState())
        self.terms = Terms(
            rounds=2,
            draw=lambda round, candidates: list(candidates),
            minimum_nodes=3,
            quorum=0.5,
            deadline_s=60.0,
            silence_s=20.0,
            least=3,
            host=Host("run", self.trusted, scheme, LENGTH),
        )
        self.terms = replace(self.terms, **terms)
        self.state = SessionState(MODEL)
        self.silent = {}
        self.masked = {}
        self.log = []
        self.tasks = {}
        self.vectors = {
            name: torch.rand(LENGTH, generator=generator(0, "vectors", 0, name)) * 2 - 1 for name in self.names
        }

    def tell(self, *events):
        """What comes of events, all answers included."""
        effects, waiting = [], list(events)
        while waiting:
            self.state, new = step(self.terms, self.state, waiting.pop(0))
            for effect in new:
                effects.append(effect)
                self.log += [effect.record] if isinstance(effect, Persist) else []
                waiting += self.answers(effect)
        return effects

    def answers(self, effect):
        match effect:
            case Send(node, Task() as task):
                self.tasks[node] = task
                number = sums.number(task.round, task.attempt)
                return self.act(node, Begin(number, task.round))
            case Send(node, Summing(data)):
                message = messages.decode(data, messages.FromServer, 1 << 20)
                return self.act(node, Heard(message))
            case Expect(node, offer):
                return [Arrived(node, offer.round, offer.update.digest)]
        return []

    def act(self, node, event):
        before = self.clients[node]
        self.clients[node], effects = client.step(self.parties[node], before, event, self.entropy)
        found = []
        for effect in effects:
            match effect:
                case Say(messages.Masked(round, data)):
                    if self.speaks(node, "mask"):
                        found.append(Received(node, self.offer(node, data, (round - 1) // ATTEMPTS + 1)))
                case Say(message):
                    if self.speaks(node, type(message).__name__.lower()):
                        found.append(Received(node, Summing(messages.encode(message))))
                case Want(_, ring):
                    encoded = ring.encode(self.vectors[node], generator(0, "rounding", 1, node), (1.0,))
                    found += self.act(node, Contribute(encoded))
        return found

    def speaks(self, node, what):
        return what not in self.silent.get(node, ())

    def offer(self, node, data, round=1):
        digest = __import__("hashlib").sha256(data).hexdigest()
        self.masked[digest] = data
        return Offer(round, Blob(digest, len(data)), 0.0, 0, {}, 0.0)

    def join(self, *names):
        """Let nodes come in; a round that has not begun waits for all of them."""
        patient, self.terms = self.terms, replace(self.terms, minimum_nodes=len(names or self.names))
        events = [Joined(name, Ready()) for name in names or self.names]
        effects = self.tell(*events[:-1])
        effects += self.tell(events[-1])
        self.terms = patient
        return effects

    def pass_time(self, seconds, *heard):
        effects = [] if self.state.world is not None else self.tell(Tick(0.0))
        for _ in range(seconds):
            alive = heard or [
                name for name in self.names if self.state.members.get(name) and self.state.members[name].here
            ]
            effects += self.tell(*(Received(name, Heartbeat()) for name in alive), Tick(self.state.world + 1))
        return effects

    def closes(self, effects):
        return [effect for effect in effects if isinstance(effect, Close)]

    def close(self, spoiled=""):
        number = self.state.round.number
        return self.tell(Closed(number, Blob(f"{number}" * 64, 32), spoiled=spoiled))

    def total(self, close):
        """The sum that a closing round is opened to."""
        offers = dict(zip(close.accepted, close.offers, strict=True))
        vector = torch.zeros(LENGTH, dtype=torch.float64)
        for opening in close.openings:
            words = opening.ring.zeros()
            for name in opening.survivors:
                np.add(words, opening.ring.unpack(self.masked[offers[name].update.digest]), out=words)
            vector += opening.ring.decode(opening.apply(words), len(opening.survivors))[0]
        return vector

    def exact(self, names):
        return sum(self.vectors[name].double() for name in names)


def opened(log):
    return [record for record in log if isinstance(record, RoundOpened)]


def settled(log):
    return {record.node: record.outcome for record in log if isinstance(record, Settled)}


def test_a_round_closes_with_the_sum_of_all_and_nobody_is_settled_before_it_is_durable():
    run = Federation()
    (close,) = run.closes(run.join())
    assert close.accepted == run.names and not close.failed
    assert torch.allclose(run.total(close), run.exact(run.names), atol=1e-6)
    assert settled(run.log) == {}
    run.close()
    assert settled(run.log) == dict.fromkeys(run.names, "accepted")
    assert run.state.completed == 1 and run.state.round.number == 2


@pytest.mark.parametrize("what", ["advert", "shares", "mask", "agreed", "reveal"])
def test_one_who_says_nothing_any_more_is_waited_for_and_then_left_out(what):
    run = Federation()
    run.silent["n4"] = {what}
    assert not run.closes(run.join())
    assert "from n4" in waiting_for(run.terms, run.state)
    limit = 60 if what == "mask" else 20
    assert not run.closes(run.pass_time(limit - 1))
    (close,) = run.closes(run.pass_time(2))
    within = run.names if what in ("agreed", "reveal") else run.names[:4]
    assert close.accepted == within
    assert torch.allclose(run.total(close), run.exact(within), atol=1e-6)
    effects = run.close()
    left_out = [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Refused)]
    assert [effect.node for effect in left_out] == [name for name in run.names if name not in within]
    assert all("not in the sum of round 1" in effect.message.reason for effect in left_out)


@pytest.mark.parametrize("what", ["advert", "shares", "agreed", "reveal"])
def test_one_who_is_gone_has_a_moment_to_come_back(what):
    run = Federation()
    run.silent["n4"] = {what}
    run.join()
    run.tell(Left("n4"))
    assert not run.closes(run.pass_time(int(sums.GRACE_S) - 1))
    assert run.closes(run.pass_time(2))


@pytest.mark.parametrize("what", ["advert", "shares", "mask", "agreed", "reveal"])
def test_one_who_comes_back_is_told_again_what_it_missed(what):
    run = Federation()
    run.silent["n4"] = {what}
    run.join()
    run.tell(Left("n4"))
    run.silent.clear()
    (close,) = run.closes(run.join("n4"))
    assert close.accepted == run.names


def test_too_few_keys_open_the_round_again_among_those_who_are_here():
    run = Federation()
    for name in ("n2", "n3", "n4"):
        run.silent[name] = {"shares"}
    run.join()
    assert not run.closes(run.pass_time(59))
    assert [record.attempt for record in opened(run.log)] == [0]
    run.tell(Left("n4"))
    run.silent.clear()
    (close,) = run.closes(run.pass_time(3))
    assert [(record.attempt, record.cohort) for record in opened(run.log)] == [(0, run.names), (1, run.names[:4])]
    assert close.accepted == run.names[:4] and run.tasks["n0"].attempt == 1
    assert torch.allclose(run.total(close), run.exact(run.names[:4]), atol=1e-6)


def test_who_failed_is_not_asked_in_the_next_attempt_and_its_failure_is_not_waited_for():
    run = Federation(nodes=4)
    run.silent["n3"] = {"mask"}
    run.silent["n2"] = {"mask"}
    run.terms = replace(run.terms, quorum=1.0)
    run.join()
    run.tell(Received("n3", Failed(1, "the loss is not finite")))
    run.silent.clear()
    effects = run.pass_time(61)
    (close,) = run.closes(effects)
    assert opened(run.log)[-1].cohort == run.names[:3] and close.accepted == run.names[:3]
    run.close()
    assert opened(run.log)[-1] == RoundOpened(2, run.names, 4, 4), "in the next round it is asked again"


def test_fewer_than_the_quorum_do_not_close():
    run = Federation(quorum=1.0)
    run.silent["n4"] = {"mask"}
    run.join()
    run.pass_time(61)
    assert [record.attempt for record in opened(run.log)] == [0, 1]


def test_over_selection_closes_with_as_many_as_are_wanted():
    run = Federation(over_selection=0.25)
    run.silent["n4"] = {"mask"}
    (close,) = run.closes(run.join())
    assert close.accepted == run.names[:4]


def test_one_who_answered_declines_or_leaves_is_not_waited_for():
    for event in (Received("n4", Failed(1, "no")), Received("n4", Leave("tired"))):
        run = Federation()
        run.silent["n4"] = {"mask"}
        run.join()
        (close,) = run.closes(run.tell(event))
        assert close.accepted == run.names[:4]


def test_a_masked_update_cannot_be_taken_back():
    run = Federation()
    run.silent["n4"] = {"mask"}
    run.join()
    run.tell(Received("n0", Failed(1, "changed my mind")), Received("n1", Leave("tired")))
    assert run.state.round.outcomes == {}


def test_a_sum_that_is_lost_after_signing_closes_the_round_without_any_update():
    run = Federation()
    for name in ("n2", "n3", "n4"):
        run.silent[name] = {"reveal"}
    run.join()
    (close,) = run.closes(run.pass_time(61))
    assert close.accepted == () == close.openings and "revealed shares" in close.failed
    effects = run.close()
    assert settled(run.log) == dict.fromkeys(run.names, "refused")
    assert [effect.node for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Refused)] == [
        *run.names
    ]
    assert run.state.completed == 1 and opened(run.log)[-1] == RoundOpened(2, run.names, 5, 3)


def test_signing_has_as_long_as_masking_had_from_when_it_begins():
    run = Federation()
    run.silent["n4"] = {"mask"}
    for name in ("n1", "n2", "n3"):
        run.silent[name] = {"agreed"}
    run.join()
    assert not run.closes(run.pass_time(60 + 59))
    (close,) = run.closes(run.pass_time(2))
    assert "signed the survivor set" in close.failed


def test_a_sum_whose_masks_did_not_cancel_counts_for_nobody():
    run = Federation()
    run.join()
    run.close(spoiled="the masks of this sum did not cancel")
    assert settled(run.log) == dict.fromkeys(run.names, "refused")
    reasons = {record.reason for record in run.log if isinstance(record, Settled)}
    assert reasons == {"no update counts in round 1: the masks of this sum did not cancel"}


def test_an_offer_of_another_size_is_refused_and_one_that_nobody_wants_means_nothing():
    run = Federation()
    run.silent["n4"] = {"mask"}
    run.join()
    before = run.state.round
    run.tell(Received("n4", Offer(1, Blob("1" * 64, 99), 0.0, 0, {}, 0.0)))
    assert run.state.round.outcomes == {"n4": "refused"} and before.outcomes == {}
    early = Federation()
    early.silent["n3"] = {"advert"}
    early.join()
    assert early.tell(Received("n4", Offer(1, Blob("1" * 64, 99), 0.0, 0, {}, 0.0))) == []
    late = Federation()
    late.silent["n4"], late.silent["n3"] = {"mask"}, {"reveal"}
    late.join()
    late.pass_time(61)
    (answer,) = late.tell(Received("n4", Offer(1, Blob("1" * 64, 99), 0.0, 0, {}, 0.0)))
    assert answer == Send("n4", Refused(1, "round 1 is added up without it"))


def test_one_who_dealt_no_shares_is_not_made_room_for():
    run = Federation()
    run.silent["n4"], run.silent["n3"] = {"shares"}, {"mask"}
    run.join()
    run.pass_time(21)
    size = sums.masked_bytes(run.state.round.sum, "n3")
    assert size is not None and sums.masked_bytes(run.state.round.sum, "n4") is None
    assert run.tell(Received("n4", Offer(1, Blob("1" * 64, size), 0.0, 0, {}, 0.0))) == []


def test_bytes_with_another_digest_are_refused():
    run = Federation()
    run.silent["n4"] = {"mask"}
    run.join()
    data = bytes(run.state.round.sum.hall.groups[0].masked and sums.masked_bytes(run.state.round.sum, "n4"))
    offer = run.offer("n4", data)
    run.answers = lambda effect: []
    run.tell(Received("n4", offer))
    run.tell(Arrived("n4", 1, "f" * 64))
    assert run.state.round.outcomes == {} and "n4" not in run.state.round.sum.masked
    run.tell(Arrived("n4", 1, offer.update.digest, "the update's bytes do not have the offered digest"))
    assert run.state.round.outcomes == {"n4": "refused"}


@pytest.mark.parametrize("data", [b"", b"\xc1", None])
def test_who_says_what_nobody_says_is_sent_away(data):
    run = Federation()
    run.silent["n4"] = {"mask"}
    run.join()
    if data is None:
        data = messages.encode(messages.Masked(1, bytes(sums.masked_bytes(run.state.round.sum, "n4"))))
    (effect,) = run.tell(Received("n4", Summing(data)))
    assert isinstance(effect, Disconnect) and effect.node == "n4" and effect.final


def test_attempts_run_out():
    run = Federation(nodes=3)
    for name in run.names:
        run.silent[name] = {"shares"}
    run.join()
    run.pass_time(60 * ATTEMPTS + 5)
    assert run.state.status == "aborted"
    assert f"round 1 could not be added up in {ATTEMPTS} attempts; the last one: 0 of 3" in run.state.reason
    assert [record.status for record in run.log if isinstance(record, RunEnded)] == ["aborted"]


def test_a_number_of_nodes_that_cannot_be_added_up_is_waited_out_in_words():
    run = Federation(nodes=4, scheme=replace(SCHEME, step=0.015, bits=9))
    run.join()
    assert run.state.round is None
    assert waiting_for(run.terms, run.state).startswith("another number of nodes")
    run.tell(Left("n3"))
    assert run.closes(run.pass_time(1))


@pytest.mark.parametrize("what", ["advert", "shares", "mask", "agreed", "reveal", None])
def test_a_server_that_starts_again_goes_through_what_was_written_and_on(what):
    run = Federation()
    if what is not None:
        run.silent["n4"] = {what}
    run.join()
    records = [record for record in run.log if isinstance(record, Summed)]
    open_round = (opened(run.log)[0], (), (), tuple(records))
    again = Federation()
    again.clients, again.masked = run.clients, run.masked
    nodes = dict.fromkeys(run.names, False)
    again.state, effects = restored(again.terms, MODEL, 0, "running", open_round, nodes)
    before, after = run.state.round.sum.hall, again.state.round.sum.hall
    assert before == after
    closes = again.closes(effects) or again.closes(again.join())
    (close,) = closes
    assert close.accepted == run.names
    assert torch.allclose(again.total(close), again.exact(again.names), atol=1e-6)


def test_groups_are_added_up_one_by_one():
    run = Federation(nodes=9, scheme=replace(SCHEME, group_size=3), least=3)
    (close,) = run.closes(run.join())
    assert [len(opening.survivors) for opening in close.openings] == [3, 3, 3]
    assert torch.allclose(run.total(close), run.exact(run.names), atol=1e-6)


def test_a_group_that_falls_silent_does_not_hold_the_others_back():
    run = Federation(nodes=9, scheme=replace(SCHEME, group_size=3), least=3)
    run.silent["n0"] = {"agreed"}
    assert not run.closes(run.join())
    (close,) = run.closes(run.pass_time(61))
    assert [len(opening.survivors) for opening in close.openings] == [3, 3]
    lost = set(run.names) - set(close.accepted)
    assert "n0" in lost and len(lost) == 3
    run.close()
    assert {node for node, outcome in settled(run.log).items() if outcome == "refused"} == lost
