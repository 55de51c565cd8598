"""Virtual time: who is late, who lands when, and what an asynchronous server makes of it."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.rng import generator
from koinon.durable.store import Store
from koinon.learn.learner import LocalTask
from koinon.run.clock import Parts
from koinon.run.coordinator import Coordinator
from koinon.run.explain import explain
from koinon.run.flights import Flights
from koinon.view.progress import Quiet

QUIET = kn.Evaluation(federated=False)
LIGHT = kn.Network(up_mbit=1e9, down_mbit=1e9, round_trip_ms=0.0)
EXAMPLES = 10
APP = Path(__file__).parents[1] / "system" / "apps" / "small.py"


def devices(*seconds, **more):
    """Devices on which training of EXAMPLES takes so long, client by client; what they send takes no time."""
    names = tuple(str(number) for number in range(len(seconds)))
    each = (kn.Device(examples_per_s=EXAMPLES / long, network=LIGHT, **more) for long in seconds)
    return kn.Trace(devices=tuple(each), names=names)


def samples(number):
    rng = torch.Generator().manual_seed(number)
    inputs = torch.randn(EXAMPLES, 3, generator=rng)
    return kn.Samples(inputs, inputs @ torch.randn(3, 1, generator=rng) + number)


def population(clients):
    return kn.Population.of(samples, size=clients)


def learner():
    return kn.TorchLearner(
        lambda: nn.Linear(3, 1), nn.MSELoss(), functools.partial(torch.optim.SGD, lr=0.1), batch_size=4
    )


def simulate(strategy, clock, folder, rounds=3, clients=None, **more):
    crowd = population(clients or len(clock.devices.devices))
    made = kn.Federation(learner(), strategy, rounds, more.pop("evaluation", QUIET))
    return kn.simulate(made, crowd, runs=folder, clock=clock, **{"progress": Quiet()} | more)


def outcomes(record):
    return {part.client: part.outcome for part in record.participants}


def test_a_round_lasts_as_long_as_its_slowest_client(tmp_path):
    run = simulate(kn.fedavg(), kn.Clock(devices=devices(1, 4, 2)), tmp_path)
    assert [record.clock_s for record in run.history] == pytest.approx([4, 8, 12])
    assert run.clock_seconds == pytest.approx(12)
    assert run.summary()["clock_seconds"] == 12.0
    same = kn.simulate(kn.Federation(learner(), kn.fedavg(), 3, QUIET), population(3), runs=tmp_path, progress=Quiet())
    assert run.digest == same.digest, "where nobody is late, time changes nothing"
    assert same.clock_seconds is None
    assert "clock_seconds" not in same.summary()


def test_bytes_take_time_too(tmp_path):
    slow = kn.Network(up_mbit=0.008, down_mbit=0.016, round_trip_ms=100.0)  # 1 kB a second up, 2 down
    trace = kn.Trace(devices=(kn.Device(examples_per_s=10.0, network=slow),), names=("0",))
    run = simulate(kn.fedavg(), kn.Clock(devices=trace), tmp_path, rounds=1)
    assert run.clock_seconds == pytest.approx(0.2 + 1 + 16 / 1000 + 16 / 2000), (
        "two trips, training, four floats each way"
    )


def test_who_is_late_does_not_count(tmp_path):
    run = simulate(kn.fedavg(), kn.Clock(devices=devices(1, 9, 2, 3), deadline_s=3.5), tmp_path)
    for number, record in enumerate(run.history, 1):
        assert outcomes(record) == {"0": "accepted", "1": "refused", "2": "accepted", "3": "accepted"}
        assert record.clock_s == pytest.approx(3.5 * number), "the last is waited for until the deadline"
        (late,) = (part for part in record.participants if part.client == "1")
        assert late.reason == "late: it took 9.0 s, and the round was over after 3.5 s"
    without = {str(number): samples(number) for number in (0, 2, 3)}
    alone = kn.simulate(
        kn.Federation(learner(), kn.fedavg(), 3, QUIET), kn.Population.of(without), runs=tmp_path, progress=Quiet()
    )
    assert torch.equal(run.vector, alone.vector)


def test_over_selection_closes_without_the_slowest(tmp_path):
    run = simulate(kn.fedavg(), kn.Clock(devices=devices(1, 9, 2, 3), over_selection=1 / 3), tmp_path, rounds=1)
    assert outcomes(run.history[0]) == {"0": "accepted", "1": "refused", "2": "accepted", "3": "accepted"}
    assert run.clock_seconds == pytest.approx(3)


def test_a_round_waits_for_as_many_as_its_rule_needs(tmp_path):
    strategy = kn.fedavg(reducer=kn.TrimmedMean(1), stages=())
    run = simulate(strategy, kn.Clock(devices=devices(1, 9, 2, 3), over_selection=3.0), tmp_path, rounds=1)
    assert outcomes(run.history[0]) == {"0": "accepted", "1": "refused", "2": "accepted", "3": "accepted"}


def test_who_was_drawn_in_secret_counts(tmp_path):
    strategy = kn.fedavg(sample=kn.Poisson(1.0), stages=(kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=4)))
    run = simulate(strategy, kn.Clock(devices=devices(1, 9, 2, 3), over_selection=1.0), tmp_path, rounds=1)
    assert set(outcomes(run.history[0]).values()) == {"accepted"}, (
        "as on a network, where over-selection then means nothing"
    )


def test_a_round_in_which_nobody_is_in_time_ends_the_run_with_the_reason(tmp_path):
    with pytest.raises(kn.ClientFailed, match=r"late: it took 4\.0 s, and the round was over after 0\.5 s"):
        simulate(kn.fedavg(), kn.Clock(devices=devices(4, 5), deadline_s=0.5), tmp_path)


def test_devices_drop_out_by_chance(tmp_path):
    run = simulate(kn.fedavg(), kn.Clock(devices=devices(*[1] * 40, dropout=0.25)), tmp_path, rounds=25)
    absent = [part for record in run.history for part in record.participants if part.outcome == "absent"]
    assert 190 < len(absent) < 310, "250 of a thousand"
    assert len({part.client for part in absent}) > 35, "never always the same"
    assert absent[0].reason == "its device dropped out"


def test_only_who_is_there_is_asked(tmp_path):
    """Client 1 is there in the first five of every ten seconds, client 2 in the last five."""
    early = kn.Device(examples_per_s=EXAMPLES / 2, network=LIGHT, on_s=5.0, off_s=5.0)
    late = kn.Device(examples_per_s=EXAMPLES / 2, network=LIGHT, on_s=5.0, off_s=5.0, shift_s=5.0)
    always = kn.Device(examples_per_s=EXAMPLES / 2.5, network=LIGHT)
    trace = kn.Trace(devices=(always, early, late), names=("0", "1", "2"))
    run = simulate(kn.fedavg(), kn.Clock(devices=trace), tmp_path, rounds=4)
    asked = [sorted(outcomes(record)) for record in run.history]
    assert asked == [["0", "1"], ["0", "1"], ["0", "2"], ["0", "2"]]


def one_device(**more):
    return kn.Trace(devices=(kn.Device(examples_per_s=EXAMPLES / 2, network=LIGHT, **more),))


def test_a_round_opens_when_somebody_is_there(tmp_path):
    clock = kn.Clock(devices=one_device(on_s=50.0, off_s=50.0, shift_s=60.0))
    assert simulate(kn.fedavg(), clock, tmp_path, rounds=1, clients=3).clock_seconds == pytest.approx(62)


def test_who_goes_in_a_round_is_out_of_it(tmp_path):
    leaving = kn.Device(examples_per_s=EXAMPLES / 2, network=LIGHT, on_s=3.0, off_s=1.0, shift_s=2.0)
    staying = kn.Device(examples_per_s=EXAMPLES / 2, network=LIGHT)
    clock = kn.Clock(devices=kn.Trace(devices=(leaving, staying), names=("0", "1")))
    run = simulate(kn.fedavg(), clock, tmp_path, rounds=1)
    assert outcomes(run.history[0]) == {"0": "absent", "1": "accepted"}


def test_nobody_is_waited_for_forever(tmp_path):
    away = kn.Device(examples_per_s=1.0, network=LIGHT, on_s=1.0, off_s=59.0, shift_s=1.5)
    with pytest.raises(kn.Unavailable, match="never in 30 days are 1 clients there"):
        simulate(kn.fedavg(), kn.Clock(devices=kn.Trace(devices=(away,))), tmp_path, clients=3)


def test_time_goes_on_where_a_run_goes_on(tmp_path):
    clock = kn.Clock(devices=devices(*range(1, 9), dropout=0.2), deadline_s=6.5)
    check_resumed(kn.fedavg(sample=kn.Uniform(5)), clock, tmp_path)


def check_resumed(strategy, clock, tmp_path):
    whole, cut = simulate(strategy, clock, tmp_path / "whole", rounds=8), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        simulate(strategy, clock, cut, rounds=8, progress=Killed())
    (begun,) = cut.iterdir()
    made = kn.Federation(learner(), strategy, 8, QUIET)
    resumed = kn.simulate(made, population(len(clock.devices.devices)), runs=cut, resume=begun.name, progress=Quiet())
    assert resumed.digest == whole.digest
    assert [record.clock_s for record in resumed.history] == [record.clock_s for record in whole.history]
    other = kn.Clock(devices=clock.devices, deadline_s=7.0)
    with pytest.raises(kn.AdmissionError, match="has another clock; leave it out"):
        simulate(strategy, other, cut, rounds=8, resume=begun.name)


class Killed(Quiet):
    def closed(self, record):
        if record.round == 4:
            raise KeyboardInterrupt


def flights(asynchrony, trace, seed=0):
    made = kn.Federation(learner(), kn.fedavg(), 3, QUIET)
    return Flights(asynchrony, Parts(made, population(len(trace.devices)), trace), seed)


def test_clients_land_in_the_order_in_which_they_end():
    """With as many at a time as there are, everybody who has landed begins again when the model has changed."""
    schedule = flights(kn.fedbuff(2, 3).asynchrony, devices(1, 2.5, 10))
    steps = [schedule.round(number, list) for number in range(1, 6)]
    assert [step.closed_s for step in steps] == pytest.approx([2.5, 5.0, 7.5, 10.0, 11.0], abs=1e-6)
    assert [step.begun for step in steps[:3]] == [{"0": 0, "1": 0}, {"0": 1, "1": 1}, {"0": 2, "1": 2}]
    assert steps[3].begun == {"0": 3, "2": 0}, "the slow one lands at last, on a model that has changed three times"
    assert steps[4].begun == {"0": 4, "1": 3}
    assert [step.needed for step in steps] == [{0}, {0}, {0}, {3}, {4}]


def test_who_drops_out_is_followed_by_another():
    schedule = flights(kn.fedbuff(4, 8).asynchrony, devices(*[1.0] * 20, dropout=0.5))
    for number in range(1, 40):
        step = schedule.round(number, list)
        assert len(step.cohort) == 4
        assert all(number - 1 - begun >= 0 for begun in step.begun.values())


def test_who_drops_out_may_try_the_same_model_again():
    """Four clients fill a buffer of four only if those that dropped out come back."""
    schedule = flights(kn.fedbuff(4, 4).asynchrony, devices(*[1.0] * 4, dropout=0.5))
    assert [len(schedule.round(number, list).cohort) for number in range(1, 11)] == [4] * 10


def test_who_is_not_there_does_not_begin():
    away = kn.Device(examples_per_s=EXAMPLES / 2, network=LIGHT, on_s=1.0, off_s=1e6, shift_s=2.0)
    there = kn.Device(examples_per_s=EXAMPLES / 2, network=LIGHT)
    schedule = flights(kn.fedbuff(1, 1).asynchrony, kn.Trace(devices=(away, there), names=("0", "1")))
    closed = [schedule.round(number, list).closed_s for number in range(1, 21)]
    assert closed == pytest.approx([2 * number for number in range(1, 21)])


def test_a_step_that_never_comes_ends_the_run():
    with pytest.raises(kn.Unavailable, match="no step in 30 days; clients' devices are off before their part is over"):
        flights(kn.fedbuff(1, 2).asynchrony, one_device(on_s=1.0, off_s=3600.0)).round(1, list)


def test_as_many_train_at_a_time_as_are_to():
    """Each of the same speed: a step of 5 among 10 takes half of a training."""
    schedule = flights(kn.fedbuff(5, 10).asynchrony, devices(*[2.0] * 60))
    closed = [schedule.round(number, list).closed_s for number in range(1, 9)]
    assert closed == pytest.approx([2, 2, 4, 4, 6, 6, 8, 8])


def test_too_few_clients_for_a_buffer_are_refused():
    with pytest.raises(kn.AdmissionError, match="3 clients never fill a buffer of 4"):
        flights(kn.fedbuff(4, 3).asynchrony, devices(1, 1, 1))


SPEEDS = (1, 2.5, 10, 3.3, 0.7)


def by_hand(schedule, steps, moved):
    """The model after so many steps, from the definition: each client trains the model from which it began."""
    own, crowd = learner(), population(len(SPEEDS))
    models = [own.initial(0)]
    for number in range(1, steps + 1):
        step, updates = schedule.round(number, list), []
        for client, begun in step.begun.items():
            task = LocalTask(number, None)
            made = own.train(models[begun], crowd[client].train, task, generator(0, "train", number, client))
            updates.append((made.delta.double(), number - 1 - begun, models[begun].double() - models[-1].double()))
        models.append((models[-1].double() + moved(updates)).float())
    return models[-1]


def test_fedbuff_is_its_paper(tmp_path):
    """Algorithm 1: the mean over the buffer of what clients changed, each times 1 / sqrt(1 + staleness)."""
    strategy, trace = kn.fedbuff(2, 4), devices(*SPEEDS)
    run = simulate(strategy, kn.Clock(devices=trace), tmp_path, rounds=12)
    schedule = flights(strategy.asynchrony, trace)

    def moved(updates):
        return sum(delta / (1 + stale) ** 0.5 for delta, stale, _ in updates) / 2

    assert torch.allclose(run.vector, by_hand(schedule, 12, moved), atol=1e-6)


def test_fedasync_is_its_paper(tmp_path):
    """Algorithm 1: x = (1 - a) x + a x_client with a = 0.6 (1 + staleness)^-0.5."""
    strategy, trace = kn.fedasync(3), devices(*SPEEDS)
    run = simulate(strategy, kn.Clock(devices=trace), tmp_path, rounds=12)
    schedule = flights(strategy.asynchrony, trace)

    def moved(updates):
        ((delta, stale, behind),) = updates
        return 0.6 * (1 + stale) ** -0.5 * (delta + behind)

    assert torch.allclose(run.vector, by_hand(schedule, 12, moved), atol=1e-6)


ASYNCHRONOUS = {
    "fedbuff": kn.fedbuff(3, 6, stages=(kn.Momentum(0.5),), codec=kn.ErrorFeedback(kn.TopK(0.5))),
    "fedasync": kn.fedasync(5),
    "a robust rule": kn.fedbuff(4, 6, reducer=kn.Median()),
    "noise": kn.fedbuff(4, 6, stages=(kn.Clip(1.0), kn.GaussianNoise(1.0))),
}
CLOCK = kn.Clock(devices=devices(*(1 + number % 7 for number in range(12)), dropout=0.1))


@pytest.mark.parametrize("strategy", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_workers_change_nothing(tmp_path, strategy):
    runs = [simulate(strategy, CLOCK, tmp_path, rounds=6, workers=workers) for workers in (1, 2)]
    assert runs[0].digest == runs[1].digest


@pytest.mark.parametrize("strategy", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_an_asynchronous_run_goes_on(tmp_path, strategy):
    check_resumed(strategy, CLOCK, tmp_path)


def test_only_models_that_somebody_trains_from_are_kept(tmp_path):
    run = simulate(kn.fedbuff(2, 3), kn.Clock(devices=devices(1, 2.5, 10)), tmp_path, rounds=3)
    kept = sorted(path.stem for path in (run.path / "checkpoints").glob("round-*.safetensors"))
    assert kept == ["round-000000", "round-000003"], "the slow client still trains from the first model"
    run = simulate(kn.fedbuff(2, 3), kn.Clock(devices=devices(1, 2.5, 10)), tmp_path, rounds=5)
    kept = sorted(path.stem for path in (run.path / "checkpoints").glob("round-*.safetensors"))
    assert kept == ["round-000004", "round-000005"], "it has landed, and trains from the fourth"


def test_what_clients_say_of_a_model_is_said_of_the_one_that_they_had(tmp_path):
    halves = {str(number): kn.DataSet(samples(number), samples(number + 50)) for number in range(3)}
    made = kn.Federation(learner(), kn.fedbuff(2, 3), 5)

    class Watching(Quiet):
        def __init__(self):
            self.told = {}

        def evaluated(self, round, values):
            self.told[round] = values

    watching, clock = Watching(), kn.Clock(devices=devices(1, 2.5, 10))
    run = kn.simulate(made, kn.Population.of(halves), runs=tmp_path, clock=clock, progress=watching)
    assert watching.told[3] == run.history[2].by_client["0"], "in the fourth step only client 0 had the third model"
    said = {record.round: sorted(record.by_client) for record in run.history}
    assert said == {1: ["0", "1"], 2: ["0", "1"], 3: ["0", "1"], 4: ["0"], 5: ["0", "1"]}
    assert "2" not in said[1] + said[2] + said[3], "it had the first model, which no round made"


def test_what_cannot_do_without_rounds_is_refused(tmp_path):
    with pytest.raises(kn.AdmissionError, match=r"need a clock; give clock=kn.Clock"):
        kn.simulate(
            kn.Federation(learner(), kn.fedbuff(2, 3), 2, QUIET), population(3), runs=tmp_path, progress=Quiet()
        )
    with pytest.raises(kn.AdmissionError, match="networks of their own; leave network="):
        simulate(kn.fedavg(), CLOCK, tmp_path, network=LIGHT)
    with pytest.raises(kn.AdmissionError, match="never fill a buffer of 13"):
        simulate(kn.fedbuff(13, 14), CLOCK, tmp_path)
    assert not list(tmp_path.iterdir()), "what is refused leaves no run behind"
    with pytest.raises(kn.AdmissionError, match="no clip bounds; take fedbuff"):
        kn.fedasync(3, stages=(kn.Clip(1.0), kn.GaussianNoise(1.0)))
    with pytest.raises(kn.AdmissionError, match="use a clip of fixed norm"):
        kn.fedbuff(3, stages=(kn.AdaptiveClip(1.0),))
    with pytest.raises(kn.AdmissionError, match="leave secure= out"):
        dataclasses.replace(kn.fedbuff(3), secure=kn.SecureSum(clip=1.0))
    with pytest.raises(kn.AdmissionError, match="leave downlink= out"):
        dataclasses.replace(kn.fedbuff(3), downlink=kn.Quantize(8))
    with pytest.raises(kn.AdmissionError, match="leave method= out"):
        dataclasses.replace(kn.fednova(), asynchrony=kn.fedbuff(3).asynchrony)
    with pytest.raises(kn.AdmissionError, match=r"mixing=1.5"):
        kn.fedasync(3, mixing=1.5)
    for wrong in (lambda: kn.fedbuff(0), lambda: kn.fedbuff(1, 0), lambda: kn.fedbuff(exponent=-1.0)):
        with pytest.raises(kn.AdmissionError, match="needs a"):
            wrong()


def test_a_network_refuses_what_has_no_rounds(tmp_path):
    from koinon.durable.history import RunInfo
    from koinon.run.settings import Settings

    made = kn.Federation(learner(), kn.fedbuff(2, 3), 2, QUIET)
    info = RunInfo("run", "app", made.digest, 2, 0, 4, "2026-01-01", "running", "network")
    with pytest.raises(kn.AdmissionError, match="fedbuff has no rounds, which a network needs"):
        Coordinator(made, info, Store(tmp_path), Settings(), clock=lambda: 0.0)
    assert (
        "2 rounds without waiting, each of 2 updates, 3 clients at a time; in simulation only"
        in dict(explain(made).facts)["strategy"]
    )


def test_noise_is_charged_for_every_step(tmp_path):
    run = simulate(ASYNCHRONOUS["noise"], CLOCK, tmp_path, rounds=6)
    expected = kn.privacy.epsilon(
        noise_multiplier=1.0, sample_rate=1.0, rounds=6, delta=1e-5, sampling="none", neighbours="replace-one"
    )
    assert run.epsilon == pytest.approx(expected, rel=1e-3)


def test_the_command_line_tells_the_time(tmp_path):
    command = [
        sys.executable,
        "-m",
        "koinon.cli",
        "simulate",
        str(APP),
        "--runs",
        str(tmp_path),
        "--json",
        "--rounds",
        "2",
    ]
    timed = subprocess.run(
        [*command, "--devices", "silos", "--deadline", "100"], capture_output=True, text=True, env=os.environ
    )
    assert timed.returncode == 0, timed.stderr
    assert '"clock_seconds":' in timed.stdout
    lost = subprocess.run([*command, "--deadline", "100"], capture_output=True, text=True, env=os.environ)
    assert lost.returncode == 2
    assert "without devices there is no time; give --devices" in lost.stderr
