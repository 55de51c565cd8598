"""SCAFFOLD: its defining equations, the optimum that it finds, what is kept where, and what it refuses."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import koinon as kn
from koinon.durable import checkpoint
from koinon.durable.journal import Journal
from koinon.protocol.messages import Blob, Chunk, Refused, Task
from koinon.protocol.node import Received, Train
from koinon.run.explain import explain
from koinon.run.participant import Participant
from koinon.run.policy import Policy
from koinon.view.progress import Quiet
from tests.strategy.lines import (
    CLIENTS,
    COPIES,
    RATE,
    cohorts,
    federation,
    first,
    gradient,
    optimum,
    samples,
    simulated,
    trained,
)

EPOCHS = 3
TOO_FEW = "at least 1"


def by_the_paper(cohorts, rate):
    """Algorithm 1 with option II, in float64: the model and the server's control."""
    x, c, own = first(), torch.zeros(4).double(), torch.zeros(CLIENTS, 4).double()
    for cohort in cohorts:
        moved, changed = [], []
        for client in cohort:
            y, steps = x.clone(), EPOCHS * COPIES[client] // 4
            for _ in range(steps):
                y = y - RATE * (gradient(y, client) - own[client] + c)
            after = own[client] - c + (x - y) / (steps * RATE)
            moved.append(y - x)
            changed.append(after - own[client])
            own[client] = after
        x = x + rate * torch.stack(moved).mean(0)
        c = c + len(cohort) / CLIENTS * torch.stack(changed).mean(0)
    return x, c


def test_it_is_algorithm_1_with_a_sampled_cohort(tmp_path):
    run = simulated(federation(kn.scaffold(CLIENTS, 0.7, sample=kn.Uniform(3)), 6, EPOCHS), tmp_path)
    drawn = cohorts(run)
    assert len({tuple(cohort) for cohort in drawn}) > 1
    x, c = by_the_paper(drawn, 0.7)
    torch.testing.assert_close(run.vector.double(), torch.cat((x, c)), rtol=5e-6, atol=5e-6)


def test_it_finds_the_optimum_of_all_clients_where_fedavg_stays_away(tmp_path):
    best = optimum((1,) * CLIENTS)
    apart = {}
    for strategy in (kn.fedavg(stages=()), kn.scaffold(CLIENTS)):
        run = simulated(federation(strategy, 60, 4), tmp_path)
        apart[strategy.name] = float((trained(run) - best).norm())
    assert apart["scaffold"] < 0.001 * apart["fedavg"], apart


class Killed(Quiet):
    """The process is killed when round 2 has closed."""

    def closed(self, record):
        if record.round == 2:
            raise KeyboardInterrupt


def test_controls_go_on_when_a_run_is_resumed(tmp_path):
    defined, cut = federation(kn.scaffold(CLIENTS, sample=kn.Uniform(2)), 5), tmp_path / "cut"
    whole = simulated(defined, tmp_path / "whole")
    population = kn.Population.of(samples, size=CLIENTS)
    with pytest.raises(KeyboardInterrupt):
        kn.simulate(defined, population, runs=cut, progress=Killed())
    (begun,) = cut.iterdir()
    assert simulated(defined, cut, resume=begun.name).digest == whole.digest


def test_workers_and_secure_sums_and_the_way_down_come_to_the_same(tmp_path):
    one, two = (simulated(federation(kn.scaffold(CLIENTS)), tmp_path / str(n), workers=n) for n in (1, 2))
    assert one.digest == two.digest
    secret = kn.scaffold(CLIENTS, secure=kn.SecureSum(clip=50.0, bits=24))
    down = kn.scaffold(CLIENTS, downlink=kn.Zstd(kn.Float32()))
    for strategy, most in ((secret, 1e-3), (down, 1e-5)):
        run = simulated(federation(strategy), tmp_path)
        torch.testing.assert_close(run.vector, one.vector, rtol=most, atol=most)


def test_what_a_refused_update_changed_of_the_control_is_taken_back(tmp_path):
    made, journal = federation(kn.scaffold(CLIENTS)), Journal(tmp_path / "run")
    participant = Participant(made, "0", 0, kn.DataSet.of(samples(0)), journal, Policy(), lambda: 0.0)
    participant.connected()
    controls = []
    for round in (1, 2):
        data = torch.full((8,), float(round)).numpy().tobytes()
        model = Blob(hashlib.sha256(data).hexdigest(), len(data))
        participant.handle(Received(Task(round, model, CLIENTS, 60.0)))
        (job,) = [out for out in participant.chunk(Chunk(model.digest, 0, data)) if isinstance(out, Train)]
        participant.handle(participant.work(job))
        controls.append(load_file(journal.folder / f"state-{round:06d}")["learner.control"])
    assert not controls[0].equal(controls[1])
    participant.handle(Received(Refused(2, "late")))
    assert journal.state(before=3)["learner.control"].equal(controls[0])
    journal.close()


def test_the_model_is_told_without_controls_and_running_statistics_have_none(tmp_path):
    def make():
        return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    run = simulated(federation(kn.scaffold(CLIENTS), 2, make=make), tmp_path)
    assert not make().load_state_dict(run.model, strict=False).unexpected_keys
    server = checkpoint.load(run.path / "checkpoints" / "round-000002.safetensors")
    controls = run.layout.views(server.model)
    assert controls["control.1.weight"].any() and not controls["control.0.running_mean"].any()
    assert controls["0.running_mean"].any()


def test_explain_tells_what_a_node_keeps_and_that_it_sends_twice_as_much():
    explained, plain = explain(federation(kn.scaffold(CLIENTS))), explain(federation(kn.fedavg()))
    assert "16 bytes that its learner keeps" in dict(explained.learns)["a node's own disk"]
    assert (explained.bytes_up, explained.bytes_down) == (plain.bytes_up + 16, plain.bytes_down + 16)
    assert "beside it its control" in dict(explained.learns)["the server"]


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"clients": 0}, TOO_FEW),
        ({"clients": 3, "rate": 0.0}, "positive finite rate"),
        ({"clients": 3, "sample": kn.Uniform(3), "stages": (kn.Clip(1.0), kn.GaussianNoise(1.0))}, "fedprox"),
    ],
)
def test_what_cannot_work_is_refused(arguments, cure):
    with pytest.raises(kn.AdmissionError, match=cure):
        kn.scaffold(**arguments)


def test_a_learner_with_momentum_is_refused():
    with pytest.raises(kn.AdmissionError, match="leave its momentum out"):
        federation(kn.scaffold(CLIENTS), momentum=0.9)
