"""Own layers: FedPer, FedRep and FedBN by their equations, where they matter, what leaves a node, and what is refused."""

import functools

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.rng import generator
from koinon.durable import checkpoint
from koinon.learn.learner import LocalTask
from koinon.run.explain import explain
from koinon.view.progress import Quiet

RATE = 0.1
NOT_SHARED = "own, and others that are shared"


def two_layers():
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def learner(make=two_layers, batch=20, epochs=1, **descent):
    sgd = functools.partial(torch.optim.SGD, lr=RATE, **descent)
    return kn.TorchLearner(make, nn.CrossEntropyLoss(), sgd, epochs=epochs, batch_size=batch, metrics=(kn.Accuracy(),))


def permuted(client):
    """What a client calls 0 is 1 to every second other."""
    rng = torch.Generator().manual_seed(client)
    inputs = torch.randn(120, 4, generator=rng)
    targets = ((inputs.sum(1) > 0) ^ bool(client % 2)).long()
    return kn.DataSet(kn.Samples(inputs[:60], targets[:60]), kn.Samples(inputs[60:], targets[60:]))


def simulated(made, folder, strategy=None, rounds=4, make=permuted, **settings):
    population = kn.Population.of(make, size=4)
    defined = kn.Federation(made, strategy or kn.fedavg(), rounds)
    return kn.simulate(defined, population, runs=folder, progress=Quiet(), **settings)


def stepped(model, data, names, steps=2):
    """Gradient steps of only these parameters, on all data."""
    if not steps:
        return model
    model = {name: value.clone().requires_grad_() for name, value in model.items()}
    outputs = torch.func.functional_call(two_layers(), model, (data.inputs,))
    nn.functional.cross_entropy(outputs, data.targets).backward()
    after = {name: (value - RATE * value.grad if name in names else value).detach() for name, value in model.items()}
    return stepped(after, data, names, steps - 1)


BODY, HEAD = ("0.weight", "0.bias"), ("1.weight", "1.bias")


@pytest.mark.parametrize("head_passes", [0, 3])
def test_it_is_fedper_and_fedrep_by_hand(tmp_path, head_passes):
    """FedPer steps all layers at once; FedRep the head some times, and then the body with the head that came out."""
    made = kn.Personal(learner(batch=60, epochs=2), ("1.*",), head_passes)
    run = simulated(made, tmp_path, rounds=3)
    first = made.within.layout.state_dict(made.within.initial(0))
    body, heads = {name: first[name] for name in BODY}, [{name: first[name] for name in HEAD}] * 4
    for _ in range(3):
        bodies = []
        for client in range(4):
            data, model = permuted(client).train, {**body, **heads[client]}
            for _ in range(head_passes):
                model = stepped(model, data, HEAD)
            model = stepped(model, data, BODY if head_passes else BODY + HEAD)
            heads[client] = {name: model[name] for name in HEAD}
            bodies.append({name: model[name] for name in BODY})
        body = {name: torch.stack([each[name] for each in bodies]).mean(0) for name in BODY}
    assert set(run.model) == set(BODY)
    for name in BODY:
        torch.testing.assert_close(run.model[name], body[name], rtol=2e-6, atol=2e-6)
    kept = checkpoint.load(run.path / "checkpoints" / "round-000003.safetensors").clients
    for client in range(4):
        own = torch.cat([heads[client][name].flatten() for name in HEAD])
        torch.testing.assert_close(kept[f"{client}/learner.own"], own, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("head_passes", [0, 2])
def test_clients_with_labels_of_their_own_fare_better_with_heads_of_their_own(tmp_path, head_passes):
    mine = simulated(kn.Personal(learner(), ("1.*",), head_passes), tmp_path, rounds=25).metrics["accuracy"]
    alike = simulated(learner(), tmp_path, rounds=25).metrics["accuracy"]
    assert mine > 0.85 and alike < 0.6, (mine, alike)


def normalised():
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))


def scaled(client):
    """The same question, by features that every client measures in units of its own, from a zero of its own."""
    rng = torch.Generator().manual_seed(client)
    inputs = torch.randn(200, 4, generator=rng)
    shown, targets = inputs * 10.0 ** (client - 1) + 30.0 * client, (inputs.sum(1) > 0).long()
    return kn.DataSet(kn.Samples(shown[:100], targets[:100]), kn.Samples(shown[100:], targets[100:]))


def test_where_features_are_shifted_local_normalisation_fares_better(tmp_path):
    names = kn.batch_norms(normalised())
    assert names == ("0.*",)
    made = kn.Personal(learner(normalised, epochs=5), names)
    mine = simulated(made, tmp_path, rounds=10, make=scaled)
    alike = simulated(learner(normalised, epochs=5), tmp_path, rounds=10, make=scaled)
    assert set(mine.model) == {"1.weight", "1.bias"}
    assert mine.metrics["accuracy"] > 0.9 > 0.8 > alike.metrics["accuracy"], (mine.metrics, alike.metrics)


def test_names_of_batch_normalisation_within_a_model():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(1, 2)), nn.Flatten())
    assert kn.batch_norms(model) == ("1.0.*",)


def test_workers_and_secure_sums_and_a_resumed_run_come_to_the_same(tmp_path):
    made = kn.Personal(learner(), ("1.*",))
    one, two = (simulated(made, tmp_path, workers=count) for count in (1, 2))
    assert one.digest == two.digest and one.metrics == two.metrics
    secret = kn.fedavg(stages=(), secure=kn.SecureSum(clip=10.0, bits=24))
    hidden = simulated(made, tmp_path, secret)
    torch.testing.assert_close(hidden.vector, one.vector, rtol=1e-4, atol=1e-4)


def test_a_correction_is_of_the_shared_layers_alone():
    """Against a pull of FedProx the own layers go as without one."""
    made, data = kn.Personal(learner(batch=60, epochs=1), ("1.*",)), permuted(0).train
    pull = Pull()
    start = made.initial(0)
    corrected = made.train(start, data, LocalTask(1, pull), generator(0, "train"))
    plain = made.train(start, data, LocalTask(1), generator(0, "train"))
    assert pull.shapes == [(3, 4), (3,)]
    torch.testing.assert_close(corrected.memory["own"], plain.memory["own"])
    torch.testing.assert_close(corrected.delta, plain.delta - RATE, rtol=1e-5, atol=1e-6)


class Pull:
    """Adds 1 to every gradient that it is shown."""

    def correct(self, gradients, parameters, start):
        self.shapes = [tuple(gradient.shape) for gradient in gradients]
        assert len(gradients) == len(parameters) == len(start)
        for gradient in gradients:
            gradient += 1


@pytest.mark.parametrize(
    "strategy",
    [kn.scaffold(4), kn.fednova(), kn.feddyn(4), kn.fedprox(0.1), kn.qfedavg(), kn.afl()],
    ids=lambda s: s.name,
)
def test_it_goes_with_every_algorithm(tmp_path, strategy):
    run = simulated(kn.Personal(learner(epochs=4), ("1.*",)), tmp_path, strategy, rounds=10)
    assert set(run.model) == set(BODY)
    assert run.metrics["accuracy"] > 0.7


def test_explain_counts_only_what_leaves_and_tells_what_stays():
    whole, mine = (
        explain(kn.Federation(made, kn.fedavg(), 1)) for made in (learner(), kn.Personal(learner(), ("1.*",)))
    )
    assert (mine.bytes_up, mine.bytes_down) == (whole.bytes_up - 32, whole.bytes_down - 32)
    assert "32 bytes that its learner keeps" in dict(mine.learns)["a node's own disk"]


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"layers": ("2.*",)}, "there are 0.weight"),
        ({"layers": ("*",)}, NOT_SHARED),
        ({"layers": ()}, NOT_SHARED),
        ({"layers": ("1.*",), "head_passes": -1}, "a number >= 0"),
    ],
)
def test_what_cannot_work_is_refused(arguments, cure):
    with pytest.raises(kn.AdmissionError, match=cure):
        kn.Personal(learner(), **arguments)


def test_nothing_else_keeps_or_protects_beside_it_and_the_server_cannot_judge():
    made = kn.Personal(learner(), ("1.*",))
    with pytest.raises(kn.AdmissionError, match="take one of the two"):
        kn.Federation(made, kn.ditto(), 1)
    with pytest.raises(kn.AdmissionError, match="all own layers at once"):
        kn.Personal(made, ("0.bias",))
    with pytest.raises(kn.AdmissionError, match="leave dp= out"):
        kn.Personal(kn.TorchLearner(two_layers, nn.CrossEntropyLoss(), dp=kn.DPSGD(1.0, 1.0, 0.5)), ("1.*",))
    for strategy in (kn.fedavg(), kn.scaffold(4)):
        with pytest.raises(kn.AdmissionError, match="leave test= out"):
            kn.Federation(made, strategy, 1, kn.Evaluation(test=permuted(0)))
