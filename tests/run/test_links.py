"""What a node measures of its link, and what a simulated network does to a run."""

from pathlib import Path

import pytest

import koinon as kn
from koinon.core.network import NETWORKS
from koinon.run.app import load_app
from koinon.run.gauge import Gauge
from koinon.update.fitted import Link
from koinon.view.progress import Quiet

APP = load_app(str(Path(__file__).parents[1] / "system" / "apps" / "small.py"))
SLOW, FAST = NETWORKS["slow-3g"], NETWORKS["lan"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def upload(gauge, clock, size, trip, seconds):
    gauge.offered()
    clock.now += trip
    gauge.wanted(size)
    clock.now += seconds
    gauge.accepted()


def test_a_link_is_what_bytes_take_beyond_a_round_trip():
    clock = Clock()
    gauge = Gauge(clock)
    assert gauge.link is None
    upload(gauge, clock, size=1_000_000, trip=0.25, seconds=2.25)
    assert gauge.link == Link(500_000.0, 0.25)
    upload(gauge, clock, size=1_000_000, trip=0.25, seconds=1.25)
    assert gauge.link == Link(750_000.0, 0.25), "newer ones count as much as all before"


def test_what_tells_nothing_is_not_measured():
    clock = Clock()
    gauge = Gauge(clock)
    gauge.accepted()  # of an update that an earlier connection brought
    gauge.offered()
    gauge.lost()
    clock.now += 100
    gauge.wanted(1000)
    gauge.accepted()
    upload(gauge, clock, size=0, trip=1.0, seconds=1.0)  # the server had all of it
    assert gauge.link is None


def test_an_update_within_one_round_trip_does_not_divide_by_zero():
    clock = Clock()
    gauge = Gauge(clock)
    upload(gauge, clock, size=100, trip=1.0, seconds=0.5)
    assert gauge.link == Link(100_000.0, 1.0)


def federation(codec, rounds=3):
    stages = (kn.Weight(), kn.Momentum(0.9))  # which has a state beside what is known of a link
    return kn.Federation(APP.federation.learner, kn.fedavg(stages=stages, codec=codec), rounds)


def simulated(tmp_path, codec, network=None, **settings):
    return kn.simulate(federation(codec), APP.clients(4), runs=tmp_path, network=network, **settings)


def test_a_network_is_told_and_changes_nothing_else(tmp_path):
    without, slow = simulated(tmp_path, kn.Quantize(8)), simulated(tmp_path, kn.Quantize(8), SLOW)
    assert slow.digest == without.digest
    assert without.network_seconds is None
    assert "network_seconds" not in without.summary()
    waited = [
        max(SLOW.seconds(part.bytes_up, part.bytes_down) for part in record.participants) for record in slow.history
    ]
    assert slow.network_seconds == pytest.approx(sum(waited))
    assert slow.summary()["network_seconds"] == round(sum(waited), 3)


def test_the_slowest_of_different_clients_is_waited_for(tmp_path):
    slowest = APP.clients(4).ids[2]
    mixed = simulated(tmp_path, kn.Quantize(8), lambda client: SLOW if client == slowest else FAST)
    assert mixed.network_seconds == simulated(tmp_path, kn.Quantize(8), SLOW).network_seconds


def test_each_client_sends_as_much_as_its_link_can_take(tmp_path):
    codec = kn.Fitted((kn.Float32(), kn.Float16()), seconds=SLOW.round_trip_s + 50 / SLOW.up.bytes_per_s)
    slow = APP.clients(4).ids[2]
    run = simulated(tmp_path, codec, lambda client: SLOW if client == slow else FAST)
    for record in run.history:
        sent = {part.client: part.bytes_up for part in record.participants}
        assert all(sent[client] - sent[slow] == 30 for client in sent if client != slow), "of 15 values two bytes each"


class Killed(Quiet):
    def closed(self, record):
        if record.round == 1:
            raise KeyboardInterrupt


def test_a_run_that_goes_on_keeps_its_network(tmp_path):
    codec = kn.Fitted((kn.Float32(), kn.Eden(1)), seconds=0.7)
    whole, cut = simulated(tmp_path / "whole", codec, FAST), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        simulated(cut, codec, FAST, progress=Killed())
    (begun,) = cut.iterdir()
    resumed = simulated(cut, codec, resume=begun.name)
    assert resumed.digest == whole.digest
    assert resumed.network_seconds == whole.network_seconds
