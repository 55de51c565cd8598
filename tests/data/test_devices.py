"""Devices: drawn once and for all, read from traces, and refused with a cure."""

import math
import statistics

import pytest

import koinon as kn
from koinon.core.network import NETWORKS
from koinon.data.devices import FLEETS, devices_named

HEADER = "examples_per_s,up_mbit,down_mbit,round_trip_ms"


def device(**more):
    return kn.Device(**{"examples_per_s": 100.0, "network": NETWORKS["dsl"]} | more)


def trace(tmp_path, *lines, header=HEADER):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def test_a_part_takes_as_long_as_its_bytes_and_its_examples():
    own = device(network=kn.Network(up_mbit=8.0, down_mbit=80.0, round_trip_ms=50.0))
    assert own.seconds(examples=300, bytes_up=2_000_000, bytes_down=10_000_000) == pytest.approx(3 + 2 + 1 + 0.1)


def test_a_device_comes_and_goes():
    own = device(on_s=100.0, off_s=50.0, shift_s=90.0)
    assert [own.stays(at) for at in (0, 9, 11, 59, 61, 159, 161)] == [True, True, False, False, True, True, False]
    assert own.stays(0, 9.9)
    assert not own.stays(0, 10.1)
    assert device().stays(1e9, 1e9)


def test_a_fleet_is_drawn_once_and_spread_as_it_says():
    fleet = kn.Fleet(typical=device(off_s=1.0), spread=1.0)
    drawn = [fleet(str(number)) for number in range(2000)]
    assert drawn[:50] == [kn.Fleet(typical=device(off_s=1.0), spread=1.0)(str(number)) for number in range(50)]
    assert drawn[0] != kn.Fleet(typical=device(off_s=1.0), spread=1.0, seed=1)("0")
    for of in (lambda one: one.examples_per_s / 100, lambda one: one.network.up_mbit / 10):
        logarithms = [math.log(of(one)) for one in drawn]
        assert abs(statistics.mean(logarithms)) < 5 / math.sqrt(2000)
        assert abs(statistics.stdev(logarithms) - 1) < 0.1
    there = statistics.mean(one.stays(0.0) for one in drawn)
    assert there > 0.99, "one second off in a day"


def test_a_trace_gives_each_client_one_of_its_devices(tmp_path):
    read = kn.Trace.read(trace(tmp_path, "10,1,2,30", "20,1,2,30"))
    assert {device.examples_per_s for device in read.devices} == {10.0, 20.0}
    chosen = [read(str(client)).examples_per_s for client in range(400)]
    assert chosen == [read(str(client)).examples_per_s for client in range(400)]
    assert 150 < chosen.count(10.0) < 250


def test_a_trace_may_say_whose_each_device_is(tmp_path):
    read = devices_named(str(trace(tmp_path, "b,10,1,2,30,0.5", "a,20,1,2,30,", header=f"client,{HEADER},dropout")))
    assert read("a") == kn.Device(examples_per_s=20.0, network=kn.Network(up_mbit=1, down_mbit=2, round_trip_ms=30))
    assert read("b").dropout == 0.5
    with pytest.raises(kn.AdmissionError, match="no device of client c; add a line"):
        read("c")


@pytest.mark.parametrize(
    ("header", "line", "said"),
    [
        (HEADER, "0,1,2,30", "line 2: expected `float` > 0.0"),
        (HEADER, "ten,1,2,30", "line 2: expected `float`"),
        (HEADER, "inf,1,2,30", "line 2: a device needs finite speed"),
        (f"{HEADER},dropuot", "1,1,2,30,0", "line 2: there is no column dropuot; columns are client, .*dropout"),
        (HEADER, "1,1,2,30,5", "line 2: more cells than columns"),
        ("examples_per_s,up_mbit", "1,1", "line 2: object missing required field `down_mbit`"),
        (HEADER, "", "a trace needs a device at least"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(tmp_path, header, line, said):
    with pytest.raises(kn.AdmissionError, match=said):
        kn.Trace.read(trace(tmp_path, line, header=header))


def test_names_are_names_of_fleets_or_files(tmp_path):
    assert devices_named("phones") == kn.Fleet.named("phones") == FLEETS["phones"]
    with pytest.raises(kn.Unavailable, match="no devices fones; write silos, phones or a trace"):
        devices_named("fones")
    with pytest.raises(kn.AdmissionError, match="no fleet fones; there are silos, phones"):
        kn.Fleet.named("fones")
    with pytest.raises(kn.AdmissionError, match="every line says whose device it is, or none does"):
        kn.Trace.read(trace(tmp_path, "a,1,1,2,30", ",1,1,2,30", header=f"client,{HEADER}"))


def test_impossible_clocks_are_refused():
    with pytest.raises(kn.AdmissionError, match="the deadline is seconds above 0"):
        kn.Clock(devices=FLEETS["silos"], deadline_s=0.0)
    with pytest.raises(kn.AdmissionError, match="over-selection is a finite share"):
        kn.Clock(devices=FLEETS["silos"], over_selection=-0.1)
    with pytest.raises(kn.AdmissionError, match="a device needs finite speed"):
        device(examples_per_s=math.inf)
