"""Thousands of runs in which everything goes wrong, and proof that the simulator notices broken code."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from koinon.protocol.events import Close, Send, Settled
from koinon.protocol.messages import Accepted, Offer
from koinon.protocol.node import NodeState, Say
from koinon.run.coordinator import Coordinator
from koinon.run.participant import Participant
from koinon.testing.disk import FaultyJournal, FaultySpool, FaultyStore
from koinon.testing.faults import main, simulate_faults
from koinon.testing.invariants import Broken
from koinon.testing.plan import FAULTS, plan
from koinon.testing.process import Parts

BATCH = 50


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("first", range(0, 2000, BATCH))
def test_every_invariant_holds_after_every_event(first):
    for seed in range(first, first + BATCH):
        simulate_faults(seed)


@pytest.mark.parametrize("first", range(0, 2000, BATCH))
def test_every_invariant_holds_where_updates_are_added_up_secretly(first):
    for seed in range(first, first + BATCH):
        simulate_faults(seed, secure=True)


def test_every_fault_is_injected_and_every_end_is_reached():
    outcomes = [simulate_faults(seed) for seed in _seeds_with_every_fault()]
    faults = sum((Counter(outcome.faults) for outcome in outcomes), Counter())
    expected = {*FAULTS, *(f"frame {kind}" for kind in ("lost", "repeated", "overtaken", "damaged"))}
    expected |= {"write refused", "killed before a write", "killed after a write", "killed between two effects"}
    assert expected - faults.keys() == set()
    assert {outcome.status for outcome in outcomes} == {"finished", "waiting", "aborted"}
    assert all(outcome.waiting_for for outcome in outcomes if outcome.status == "waiting")


def _seeds_with_every_fault():
    """Seeds from 5000 on whose plans bring something new, and some more for what is left to chance."""
    seen, seeds = Counter(), []
    for seed in range(5000, 6000):
        planned = plan(random.Random(seed))
        faults = {happening.fault for happening in planned.happenings}
        rough = planned.tampering and planned.deadly
        if any(seen[fault] < 3 for fault in faults) or (rough and len(seeds) < 60):
            seen.update(faults)
            seeds.append(seed)
    return seeds


def test_a_seed_decides_everything():
    lines = []
    lines.append(str(simulate_faults(49, trace=lines.append)))
    command = [sys.executable, "-m", "koinon.testing.faults", "--replay", "49"]
    done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == lines


class ForgetfulStore(FaultyStore):
    """Loses how a node's part was settled."""

    def persist(self, *records):
        super().persist(*(record for record in records if not isinstance(record, Settled)))


class BackwardStore(FaultyStore):
    """Comes back one round too early."""

    def completed(self):
        return max(0, super().completed() - 1)


class BlankStore(FaultyStore):
    """Comes back without the updates that it had accepted."""

    def open_round(self):
        found = super().open_round()
        return None if found is None else (*found[:2], (), ())


class RestartingSpool(FaultySpool):
    """Asks for all bytes of an update again, and keeps those that it had."""

    def expect(self, round, node, blob):
        received = super().expect(round, node, blob)
        if 0 < received < blob.size:
            self._arriving[node].received = 0
            return 0
        return received


class HastyCoordinator(Coordinator):
    """Acknowledges an update when its last byte has come."""

    def chunk(self, node, chunk):
        outs = super().chunk(node, chunk)
        return [Send(node, Accepted(self.state.round.number)), *outs] if outs else outs


class GenerousCoordinator(Coordinator):
    """Counts the first update of a round twice."""

    def work(self, job):
        if isinstance(job, Close) and job.accepted:
            job = replace(job, accepted=(*job.accepted, job.accepted[0]), offers=(*job.offers, job.offers[0]))
        return super().work(job)


class SloppyCoordinator(Coordinator):
    """Leaves the last update out of the mean when there are several."""

    def work(self, job):
        if isinstance(job, Close) and len(job.accepted) > 2:
            job = replace(job, accepted=job.accepted[:-1], offers=job.offers[:-1])
        return super().work(job)


class RedrawingParticipant(Participant):
    """Trains again after a restart what it had trained before."""

    def __post_init__(self):
        super().__post_init__()
        self.state = NodeState()


class StatelessJournal(FaultyJournal):
    """Loses what the stages carry from round to round."""

    def state(self, before):
        return None


@pytest.mark.parametrize(
    ("parts", "noticed"),
    [
        (Parts(store=ForgetfulStore), "acknowledges"),
        (Parts(store=BackwardStore), "another start|closed"),
        (Parts(store=BlankStore), "settled|counts|acknowledged"),
        (Parts(spool=RestartingSpool), "digest"),
        (Parts(coordinator=HastyCoordinator), "acknowledges"),
        (Parts(coordinator=GenerousCoordinator), "not the mean"),
        (Parts(coordinator=SloppyCoordinator), "not the mean"),
        (Parts(participant=RedrawingParticipant), "second, different"),
        (Parts(journal=StatelessJournal), "carried through"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_code_is_noticed(parts, noticed):
    with pytest.raises(Broken, match=noticed) as broken:
        for seed in range(300):
            simulate_faults(seed, parts)
    (seed,) = re.findall(r"--replay (\d+)$", str(broken.value))
    with pytest.raises(Broken, match=noticed):
        simulate_faults(int(seed), parts)


class ForgetfulJournal(FaultyJournal):
    """Comes back without its part in the open secure sum."""

    def sum(self):
        return None


class GarblingCoordinator(Coordinator):
    """Makes something else of the sum."""

    def _added(self, job, state):
        added = super()._added(job, state)
        return replace(added, total=added.total * 2)


class CandidParticipant(Participant):
    """Offers what it trained in place of what is masked."""

    def handle(self, event):
        outs = super().handle(event)
        return [
            Say(self.state.journal[out.message.round].offer)
            if isinstance(out, Say) and isinstance(out.message, Offer)
            else out
            for out in outs
        ]


@pytest.mark.parametrize(
    ("parts", "noticed"),
    [
        (Parts(journal=ForgetfulJournal), "a second time, with other keys"),
        (Parts(coordinator=GarblingCoordinator), "not the mean"),
        (Parts(participant=CandidParticipant), "tells what only a sum may tell"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_code_of_secure_sums_is_noticed(parts, noticed):
    with pytest.raises(Broken, match=noticed):
        for seed in range(300):
            simulate_faults(seed, parts, secure=True)


def test_the_command_counts_what_it_did(capsys):
    assert main(["--seeds", "60", "--jobs", "1"]) == 0
    assert "60 seeds" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--replay", "3"], ["--seeds", "5", "--start", "3", "--jobs", "1"]])
def test_the_command_prints_how_to_replay_a_failure(capsys, monkeypatch, arguments):
    def fails(self):
        raise Broken("two and two are five")

    monkeypatch.setattr("koinon.testing.world.World.run", fails)
    assert main(arguments) == 1
    words = capsys.readouterr().out
    assert "seed 3, 0.000 s: two and two are five" in words
    assert words.endswith("python -m koinon.testing.faults --replay 3\n")
