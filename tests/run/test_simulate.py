"""Simulation: equal seeds, equal bits; crashes lose nothing; the mean of what clients did is what comes out."""

import asyncio
import functools

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.rng import generator
from koinon.core.types import Update
from koinon.learn.learner import LocalTask
from koinon.run.engine import InProcess
from koinon.run.simulate import simulate
from koinon.update.stage import OnClient
from koinon.view.progress import Quiet


def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def digits():
    return kn.data.load("digits")


def federation(digits, rounds=3, **strategy):
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    learner = kn.TorchLearner(model, nn.CrossEntropyLoss(), sgd, metrics=(kn.Accuracy(),))
    return kn.Federation(learner, kn.fedavg(**strategy), rounds, kn.Evaluation(test=digits.test))


@pytest.fixture
def run(digits, tmp_path):
    population = digits.split(kn.Dirichlet(0.5), clients=8, seed=0)

    def go(rounds=3, seed=0, population=population, federation=None, **more):
        definition = federation or globals()["federation"](digits, rounds)
        return simulate(definition, population, seed, runs=tmp_path / "runs", progress=Quiet(), **more)

    return go


def test_equal_seeds_give_equal_bits_and_other_seeds_others(run):
    assert run().digest == run().digest != run(seed=1).digest


def test_the_model_learns_and_its_state_dict_loads(run, digits):
    result = run(rounds=12)
    assert result.history[-1].metrics["accuracy"] > 0.8
    module = model()
    module.load_state_dict(result.model)
    accuracy = (module(digits.test.inputs).argmax(1) == digits.test.targets).float().mean()
    assert accuracy.item() == pytest.approx(result.metrics["accuracy"])


def test_one_round_is_the_weighted_mean_of_the_clients_updates(run, digits):
    definition = federation(digits, rounds=1)
    population = digits.split(kn.Dirichlet(0.5), clients=5, seed=1)
    result = run(population=population, federation=definition, seed=4)
    start = definition.learner.initial(4)
    sizes, deltas = [], []
    for client in population.ids:
        data = population[client].train
        update = definition.learner.train(start, data, LocalTask(1), generator(4, "train", 1, client))
        sizes.append(float(len(data)))
        deltas.append(update.delta.double() * len(data))
    expected = start + (sum(deltas) / sum(sizes)).float()
    assert torch.equal(result.vector, expected)
    assert [part.examples for part in result.history[0].participants] == sizes


def test_only_the_sampled_clients_take_part(run, digits):
    result = run(federation=federation(digits, sample=kn.Uniform(3)))
    for record in result.history:
        assert len(record.participants) == 3
    assert len({part.client for record in result.history for part in record.participants}) > 3


def test_a_poisson_round_with_nobody_passes_and_the_model_stays(run, digits):
    result = run(rounds=6, federation=federation(digits, rounds=6, sample=kn.Poisson(0.05)))
    empty = [record for record in result.history if not record.participants]
    assert empty, "a seed without an empty round proves nothing"
    digests = ["", *(record.digest for record in result.history)]
    for record in empty:
        assert digests[record.round] == digests[record.round - 1] or record.round == 1


class Killed(Quiet):
    def __init__(self, after):
        self.after = after

    def closed(self, record):
        if record.round == self.after:
            raise KeyboardInterrupt


def test_a_run_that_was_cut_short_goes_on_to_the_same_bits(run, digits, tmp_path):
    whole = run(rounds=5)
    with pytest.raises(KeyboardInterrupt):
        simulate(
            federation(digits, 5),
            digits.split(kn.Dirichlet(0.5), clients=8, seed=0),
            runs=tmp_path / "cut",
            progress=Killed(after=2),
        )
    (cut,) = (tmp_path / "cut").iterdir()
    population = digits.split(kn.Dirichlet(0.5), clients=8, seed=0)
    resumed = simulate(federation(digits, 5), population, runs=tmp_path / "cut", resume=cut.name, progress=Quiet())
    assert resumed.digest == whole.digest
    assert [record.round for record in resumed.history] == [1, 2, 3, 4, 5]


def test_resuming_with_another_definition_is_refused(run, digits, tmp_path):
    result = run()
    with pytest.raises(kn.AdmissionError, match="restore the app"):
        run(federation=federation(digits, 3, stages=()), resume=result.id)
    with pytest.raises(kn.Unavailable, match="no run nowhere"):
        run(resume="nowhere")


class Remember(OnClient):
    """Adds what the client sent before: its state must survive rounds and restarts."""

    def admit(self, spec):
        return spec

    def init(self, layout):
        return {"before": torch.zeros(layout.length)}

    def on_client(self, state, update, context):
        delta = update.delta + 0.1 * state["before"]
        return {"before": delta}, Update(delta, update.weight, update.examples, update.metrics)


def test_a_stages_memory_survives_a_resume(digits, tmp_path):
    def go(name, **more):
        definition = federation(digits, 4, stages=(Remember(),), sample=kn.Uniform(3))
        population = digits.split(kn.IID(), clients=6, seed=0)
        return simulate(definition, population, runs=tmp_path / name, **({"progress": Quiet()} | more))

    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", progress=Killed(after=3))
    (cut,) = (tmp_path / "cut").iterdir()
    assert go("cut", resume=cut.name).digest == whole.digest


def poisoned(index):
    samples = kn.Samples(torch.randn(20, 64, generator=generator(index, "inputs")), torch.arange(20) % 10)
    return kn.Samples(samples.inputs * float("nan"), samples.targets) if index == 1 else samples


def test_a_failing_client_is_reported_and_the_others_go_on(digits, tmp_path):
    definition = kn.Federation(kn.TorchLearner(model, nn.CrossEntropyLoss()), kn.fedavg(), 2)
    result = simulate(definition, kn.Population.of(poisoned, size=3), runs=tmp_path, progress=Quiet())
    outcomes = {part.client: (part.outcome, part.reason) for part in result.history[0].participants}
    assert outcomes["0"][0] == outcomes["2"][0] == "accepted"
    assert outcomes["1"][0] == "failed"
    assert "loss is nan" in outcomes["1"][1]
    assert torch.isfinite(result.vector).all()


def test_when_every_client_fails_the_run_says_why(digits, tmp_path):
    definition = kn.Federation(kn.TorchLearner(model, nn.CrossEntropyLoss()), kn.fedavg(), 2)
    everyone = kn.Population.of([poisoned(1), poisoned(1)])
    with pytest.raises(kn.ClientFailed, match=r"every client of round 1 failed.*loss is nan"):
        simulate(definition, everyone, runs=tmp_path, progress=Quiet())


def test_works_under_a_running_event_loop(run):
    async def notebook():
        return run().digest

    assert asyncio.run(notebook()) == run().digest


def test_held_out_parts_of_clients_are_evaluated_together(tmp_path):
    heart = kn.data.load("heart-disease")

    def logistic():
        return nn.Linear(13, 2)

    learner = kn.TorchLearner(logistic, nn.CrossEntropyLoss(), metrics=(kn.Accuracy(),))
    definition = kn.Federation(learner, kn.fedavg(), 3)
    result = simulate(definition, heart.split(kn.Natural()), runs=tmp_path, progress=Quiet())
    last = result.history[-1]
    assert set(last.by_client) == {"cleveland", "hungary", "long-beach", "switzerland"}
    module = logistic()
    module.load_state_dict(result.model)
    accuracy = (module(heart.test.inputs).argmax(1) == heart.test.targets).float().mean().item()
    assert last.federated["accuracy"] == last.metrics["accuracy"] == pytest.approx(accuracy)


def test_the_record_of_a_run_can_be_verified_and_published(run):
    result = run()
    assert (result.path / "report.html").exists()
    summary = result.summary()
    assert summary["digest"] == result.digest
    assert summary["epsilon"] is None
    assert 1 < summary["bytes_up"] / (3 * 8 * 650 * 4) < 1.4, "updates, offers and their frames"


def test_weighted_sampling_prefers_clients_with_more_examples(run, digits):
    population = digits.split(kn.QuantitySkew(0.5, min_examples=20), clients=8, seed=0)
    definition = federation(digits, 40, sample=kn.Weighted(2), stages=())
    result = run(population=population, federation=definition)
    sizes = {client: len(population[client].train) for client in population.ids}
    largest, smallest = max(sizes, key=sizes.get), min(sizes, key=sizes.get)
    asked = [part.client for record in result.history for part in record.participants]
    assert asked.count(largest) > 3 * asked.count(smallest)


class Reversed(InProcess):
    """An engine that works in another order than it answers in."""

    def train(self, round, cohort, *arguments):
        made = dict(super().train(round, list(reversed(cohort)), *arguments))
        return ((client, made[client]) for client in cohort)


def test_the_bits_do_not_depend_on_the_engine(run):
    assert run(engine=Reversed).digest == run().digest


def test_a_metric_without_a_value_is_null_in_the_summary(tmp_path):
    heart = kn.data.load("heart-disease", site="switzerland")
    ill = torch.nonzero(heart.test.targets == 1).flatten()
    learner = kn.TorchLearner(lambda: nn.Linear(13, 2), nn.CrossEntropyLoss(), metrics=(kn.AUROC(),))
    definition = kn.Federation(learner, kn.fedavg(), 1, kn.Evaluation(test=heart.test.subset(ill)))
    result = simulate(definition, kn.Population.of([heart.train]), runs=tmp_path, progress=Quiet())
    assert result.summary()["metrics"]["auroc"] is None
    assert result.summary()["metrics"]["loss"] > 0
