"""FedDyn: its defining equations, the optimum that it finds, what it remembers where, and what it refuses."""

import functools
import hashlib

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import koinon as kn
from koinon.durable.journal import Journal
from koinon.learn.corrections import Remembering
from koinon.protocol.messages import Blob, Chunk, Refused, Task
from koinon.protocol.node import Received, Train
from koinon.run.explain import explain
from koinon.run.participant import Participant
from koinon.run.policy import Policy
from koinon.view.progress import Quiet

CLIENTS, RATE, ALPHA, EPOCHS = 4, 0.05, 0.3, 7
TOO_FEW = "at least 1"


def line():
    return nn.Linear(3, 1)


def samples(client):
    """A line of its own, on inputs that are spread in a direction of its own: local optima lie far apart."""
    rng = torch.Generator().manual_seed(client)
    inputs = torch.randn(20, 3, generator=rng) * torch.tensor([1.0, 0.6, 0.6]).roll(client)
    return kn.Samples(inputs, inputs @ torch.randn(3, 1, generator=rng) + client)


def federation(strategy, rounds=3, epochs=EPOCHS):
    optimizer = functools.partial(torch.optim.SGD, lr=RATE)
    learner = kn.TorchLearner(line, nn.MSELoss(), optimizer, epochs=epochs, batch_size=20)
    return kn.Federation(learner, strategy, rounds, kn.Evaluation(federated=False))


def simulated(strategy, folder, rounds=3, epochs=EPOCHS, **settings):
    population = kn.Population.of(samples, size=CLIENTS)
    return kn.simulate(federation(strategy, rounds, epochs), population, runs=folder, **settings)


def gradient(model, client):
    """Of the mean squared error, with respect to (weights, bias), in float64."""
    inputs, targets = samples(client).batch(torch.arange(20))
    design = torch.cat((inputs, torch.ones(20, 1)), 1).double()
    return 2 / 20 * (design.T @ (design @ model[:, None] - targets.double()))[:, 0]


def by_the_paper(cohorts):
    """Algorithm 1 in float64, with gradient steps for its argmin."""
    model = federation(kn.fedavg()).learner.initial(0).double()
    h, remembered = torch.zeros(4, dtype=torch.float64), torch.zeros(CLIENTS, 4, dtype=torch.float64)
    for cohort in cohorts:
        trained = []
        for client in cohort:
            own = model.clone()
            for _ in range(EPOCHS):
                own = own - RATE * (gradient(own, client) - remembered[client] + ALPHA * (own - model))
            remembered[client] -= ALPHA * (own - model)
            trained.append(own)
        h = h - ALPHA / CLIENTS * sum(own - model for own in trained)
        model = torch.stack(trained).mean(0) - h / ALPHA
    return model


def test_it_is_algorithm_1_with_a_sampled_cohort(tmp_path):
    run = simulated(kn.feddyn(CLIENTS, ALPHA, sample=kn.Uniform(3)), tmp_path, rounds=6)
    cohorts = [[int(part.client) for part in record.participants] for record in run.history]
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    assert torch.allclose(run.vector.double(), by_the_paper(cohorts), rtol=1e-4, atol=1e-5)


def test_it_finds_the_optimum_of_all_data_where_fedavg_stays_away(tmp_path):
    batches = [samples(client).batch(torch.arange(20)) for client in range(CLIENTS)]
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    best = torch.linalg.lstsq(torch.cat((inputs, torch.ones(len(inputs), 1)), 1).double(), targets.double()).solution
    apart = {
        strategy.name: float((simulated(strategy, tmp_path, rounds=60, epochs=20).vector - best[:, 0]).norm())
        for strategy in (kn.fedavg(), kn.feddyn(CLIENTS, ALPHA))
    }
    assert apart["feddyn"] < 0.01 * apart["fedavg"], apart


class Killed(Quiet):
    """The process is killed when round 2 has closed."""

    def closed(self, record):
        if record.round == 2:
            raise KeyboardInterrupt


def test_memories_go_on_when_a_run_is_resumed(tmp_path):
    strategy, cut = kn.feddyn(CLIENTS, ALPHA, sample=kn.Uniform(2)), tmp_path / "cut"
    whole = simulated(strategy, tmp_path / "whole", rounds=5)
    with pytest.raises(KeyboardInterrupt):
        simulated(strategy, cut, rounds=5, progress=Killed())
    (begun,) = cut.iterdir()
    assert simulated(strategy, cut, rounds=5, resume=begun.name).digest == whole.digest


def test_what_a_refused_update_left_in_the_memory_is_taken_back(tmp_path):
    made, journal = federation(kn.feddyn(CLIENTS, ALPHA)), Journal(tmp_path / "run")
    participant = Participant(made, "0", 0, kn.DataSet.of(samples(0)), journal, Policy(), lambda: 0.0)
    participant.connected()
    memories = []
    for round in (1, 2):
        data = torch.full((4,), float(round)).numpy().tobytes()
        model = Blob(hashlib.sha256(data).hexdigest(), len(data))
        participant.handle(Received(Task(round, model, CLIENTS, 60.0)))
        (job,) = [out for out in participant.chunk(Chunk(model.digest, 0, data)) if isinstance(out, Train)]
        participant.handle(participant.work(job))
        memories.append(load_file(journal.folder / f"state-{round:06d}")["local.gradient"])
    assert not memories[0].equal(memories[1])
    participant.handle(Received(Refused(2, "late")))
    assert journal.state(before=3)["local.gradient"].equal(memories[0])
    journal.close()


def test_running_statistics_are_averaged_and_not_remembered(tmp_path):
    learner = kn.TorchLearner(lambda: nn.Sequential(nn.BatchNorm1d(3), line()), nn.MSELoss(), batch_size=20)
    population = kn.Population.of(samples, size=CLIENTS)
    runs = [
        kn.simulate(kn.Federation(learner, strategy, 1), population, runs=tmp_path)
        for strategy in (kn.fedavg(stages=()), kn.feddyn(CLIENTS, ALPHA))
    ]
    plain, dynamic = (run.model["0.running_mean"] for run in runs)
    assert torch.allclose(plain, dynamic, atol=1e-6)


def test_explain_tells_what_a_node_keeps_and_that_it_sends_no_more():
    explained = explain(federation(kn.feddyn(CLIENTS)))
    assert "16 bytes that local training remembers" in dict(explained.learns)["a node's own disk"]
    assert explained.bytes_up == explain(federation(kn.fedavg())).bytes_up
    assert isinstance(kn.feddyn(CLIENTS).correction, Remembering)
    assert not isinstance(kn.fedprox().correction, Remembering)


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"clients": 0}, TOO_FEW),
        ({"clients": 3, "alpha": 0.0}, "positive finite alpha"),
        ({"clients": 3, "alpha": float("nan")}, "positive finite alpha"),
        ({"clients": 3, "sample": kn.Uniform(3), "stages": (kn.Clip(1.0), kn.GaussianNoise(1.0))}, "fedprox"),
    ],
)
def test_what_cannot_work_is_refused(arguments, cure):
    with pytest.raises(kn.AdmissionError, match=cure):
        kn.feddyn(**arguments)


def test_it_can_be_added_up_secretly(tmp_path):
    secret = kn.feddyn(CLIENTS, ALPHA, secure=kn.SecureSum(clip=50.0))
    seen, hidden = (
        simulated(strategy, tmp_path, progress=Quiet()).vector for strategy in (kn.feddyn(CLIENTS, ALPHA), secret)
    )
    assert torch.allclose(seen, hidden, atol=1e-5)
