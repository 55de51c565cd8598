"""Codecs in whole runs: memories that go on, and counts of bytes that are true."""

from pathlib import Path

import pytest

import koinon as kn
from koinon.run.app import load_app
from koinon.run.compare import rivals
from koinon.run.explain import explain
from koinon.view.progress import Quiet

APP = load_app(str(Path(__file__).parents[1] / "system" / "apps" / "small.py"))


FRAMING = 800
"""More bytes than an offer and its envelopes take."""


class Killed(Quiet):
    """The process is killed when round 2 has closed."""

    def closed(self, record):
        if record.round == 2:
            raise KeyboardInterrupt


def federation(codec, rounds=4):
    return kn.Federation(APP.federation.learner, kn.fedavg(codec=codec), rounds)


def simulated(codec, tmp_path, rounds=4, **settings):
    return kn.simulate(federation(codec, rounds), APP.clients(3), runs=tmp_path, **settings)


@pytest.mark.parametrize(
    "codec", [kn.ErrorFeedback(kn.TopK(0.2) >> kn.Quantize(4) >> kn.Zstd()), kn.ErrorFeedback(kn.LowRank(1))], ids=str
)
def test_memories_go_on_when_a_run_is_resumed(codec, tmp_path):
    whole, cut = simulated(codec, tmp_path / "whole"), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        simulated(codec, cut, progress=Killed())
    (begun,) = cut.iterdir()
    assert simulated(codec, cut, resume=begun.name).digest == whole.digest


def test_a_memory_is_used(tmp_path):
    without, feedback = simulated(kn.TopK(0.2), tmp_path), simulated(kn.ErrorFeedback(kn.TopK(0.2)), tmp_path)
    assert feedback.history[0].digest == without.history[0].digest, "nothing is left out before the first round"
    assert feedback.history[1].digest != without.history[1].digest


@pytest.mark.parametrize("codec", [kn.Eden(1), kn.TopK(0.5) >> kn.Quantize(2), kn.RandomMask(0.5)], ids=str)
def test_history_and_explanation_tell_what_was_sent(codec, tmp_path):
    size = codec.size(APP.federation.learner.layout)
    run = simulated(codec, tmp_path)
    sent = {part.bytes_up for record in run.history for part in record.participants}
    assert all(size < each < size + FRAMING for each in sent)
    assert explain(federation(codec)).bytes_up == size


def test_where_the_size_depends_on_the_update_the_most_is_told(tmp_path):
    codec = kn.Quantize(8) >> kn.Zstd()
    explained = explain(federation(codec))
    assert explained.bytes_up is None
    most = codec.most(APP.federation.learner.layout)
    assert f"at most {most:,}" in dict(explained.facts)["bytes from a node, a round"]
    run = simulated(codec, tmp_path)
    assert all(0 < part.bytes_up < most + FRAMING for record in run.history for part in record.participants)


def test_it_is_told_that_a_nodes_disk_holds_what_was_left_out():
    for codec in (kn.ErrorFeedback(kn.TopK(0.2)), kn.LowRank(1)):
        assert "remembers of earlier updates" in dict(explain(federation(codec)).learns)["a node's own disk"]
    assert "remembers" not in dict(explain(federation(kn.TopK(0.2))).learns)["a node's own disk"]


def test_an_owner_alone_trains_through_the_same_codec(tmp_path):
    codec = kn.ErrorFeedback(kn.TopK(0.2))
    alone = rivals(federation(codec, rounds=2), APP.clients(2))["1 alone"]
    assert not alone.equal(rivals(federation(kn.TopK(0.2), rounds=2), APP.clients(2))["1 alone"])


def test_signs_are_voted_on(tmp_path):
    strategy = kn.fedavg(stages=(), codec=kn.Sign(), reducer=kn.MajorityVote(0.01))
    run = kn.simulate(kn.Federation(APP.federation.learner, strategy, 1), APP.clients(3), runs=tmp_path)
    moved = run.vector - APP.federation.learner.initial(0)
    assert set(moved.abs().mul(1e4).round().tolist()) == {100.0}
