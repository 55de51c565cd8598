"""Simulations that add up in the ring, beside those that do not."""

import functools
import math

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.errors import AdmissionError, ClientFailed
from koinon.core.statistics import Ranking, Ratio, Variation, from_numbers, numbers
from koinon.data.population import Population
from koinon.durable.store import Store
from koinon.secure.mask import add_masks
from koinon.view.progress import Quiet


def examples(client, count=None):
    inputs = torch.randn(count or 20 + 5 * int(client), 6, generator=torch.Generator().manual_seed(int(client)))
    return kn.Samples(inputs, (inputs[:, 0] > 0).long())


def population(clients=6):
    return Population.of(lambda client: kn.DataSet(examples(client), examples(100 + int(client), 15)), size=clients)


def federation(rounds=3, metrics=(kn.Accuracy(), kn.AUROC(16)), lr=0.1, **strategy):
    learner = kn.TorchLearner(
        lambda: nn.Linear(6, 2),
        loss=nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.SGD, lr=lr),
        metrics=metrics,
    )
    return kn.Federation(learner, kn.fedavg(**strategy), rounds)


def run(defined, tmp_path, clients=6, **options):
    return kn.simulate(defined, population(clients), runs=tmp_path, progress=Quiet(), **options)


WEIGHTED = (kn.Weight(at_most=40),)


@pytest.mark.parametrize("stages", [(), WEIGHTED, (kn.Clip(0.05), *WEIGHTED)])
def test_a_secure_sum_comes_to_what_a_mean_comes_to(stages, tmp_path):
    plain = run(federation(stages=stages), tmp_path)
    secret = run(federation(stages=stages, secure=kn.SecureSum(clip=1.0)), tmp_path)
    assert torch.allclose(plain.vector, secret.vector, atol=1e-6)
    assert secret.digest == run(federation(stages=stages, secure=kn.SecureSum(clip=1.0)), tmp_path).digest
    for one, other in zip(plain.history, secret.history, strict=True):
        assert one.training == pytest.approx(other.training, abs=1e-3)
        assert other.by_client == {}, "of one client nothing is known"
        assert {(part.examples, part.weight) for part in other.participants} == {(0, 0.0)}
    for one, other in zip(plain.history[:-1], secret.history[:-1], strict=True):
        assert one.federated == pytest.approx(other.federated, abs=1e-3)
        assert other.federated.keys() == {"loss", "accuracy", "auroc"}
    assert secret.history[-1].federated == {}, "the last model is not judged by clients"


def test_sixteen_bits_are_rough_and_right_on_average(tmp_path):
    plain = run(federation(1, stages=()), tmp_path)
    step = kn.SecureSum(clip=1.0, bits=16).ring(6, 14).resolution
    errors = []
    for seed in range(40):
        rough = run(federation(1, stages=(), secure=kn.SecureSum(clip=1.0, bits=16)), tmp_path, seed=seed)
        same = run(federation(1, stages=()), tmp_path, seed=seed) if seed else plain
        errors.append(rough.vector - same.vector)
    errors = torch.stack(errors)
    assert 0 < errors.abs().max() <= step + 1e-6
    assert errors.mean().abs() < 4 * step / math.sqrt(errors.numel())


def test_what_is_beyond_the_clip_is_cut_off(tmp_path):
    fast = federation(1, lr=5.0, stages=(), secure=kn.SecureSum(clip=0.01))
    made = run(fast, tmp_path).vector - fast.learner.initial(0)
    assert made.abs().max() <= 0.01 + 1e-6


def test_a_rule_works_on_groups_and_bears_a_liar(tmp_path):
    def liar(client):
        whole = examples(client)
        return kn.DataSet(kn.Samples(1e3 * whole.inputs, 1 - whole.targets)) if int(client) == 7 else kn.DataSet(whole)

    clients = Population.of(liar, size=12)
    secure = kn.SecureSum(clip=50.0, group_size=3)
    held, broken = (
        kn.simulate(federation(3, stages=(), secure=secure, reducer=rule), clients, runs=tmp_path, progress=Quiet())
        for rule in (kn.Median(), kn.Mean())
    )
    honest = kn.simulate(federation(3, stages=()), Population.of(examples, size=7), runs=tmp_path, progress=Quiet())
    assert (held.vector - honest.vector).norm() < 0.5 < 5 < (broken.vector - honest.vector).norm()


def test_clients_that_fail_are_left_out_until_too_few_are_left(tmp_path):
    def some(broken):
        def client(client):
            whole = examples(client)
            inputs = torch.full_like(whole.inputs, torch.nan) if int(client) < broken else whole.inputs
            return kn.Samples(inputs, whole.targets)

        return Population.of(client, size=6)

    secret = federation(1, stages=(), secure=kn.SecureSum(clip=1.0))
    left = kn.simulate(secret, some(2), runs=tmp_path, progress=Quiet())
    assert [part.outcome for part in left.history[0].participants] == ["failed"] * 2 + ["accepted"] * 4
    plain = kn.simulate(federation(1, stages=()), some(2), runs=tmp_path, progress=Quiet())
    assert torch.allclose(left.vector, plain.vector, atol=1e-6)
    with pytest.raises(ClientFailed, match=r"round 1 .*(no secure sum|updates)"):
        kn.simulate(secret, some(4), runs=tmp_path, progress=Quiet())


class Mood:
    """A metric of one's own that nobody knows the size of."""

    name = "mood"

    def measure(self, outputs, targets):
        return Ratio(float("nan"), float(len(targets)))


def test_a_metric_without_a_zero_stays_at_home_and_one_that_is_no_number_counts_for_nothing(tmp_path):
    class Sulky(Mood):
        name = "sulk"
        zero = Ratio(0.0, 0.0)

    secret = run(
        federation(2, metrics=(Mood(), Sulky(), kn.Accuracy()), stages=(), secure=kn.SecureSum(clip=1.0)), tmp_path
    )
    assert secret.history[0].federated.keys() == {"loss", "accuracy", "sulk"}
    assert secret.history[0].federated["sulk"] == 0.0


@pytest.mark.parametrize(
    "statistic",
    [Ratio(1.5, 3.0), Ranking((1, 2, 0), (0, 4, 9)), Variation(3.0, 1.0, 2.5, 0.5)],
    ids=lambda each: type(each).__name__,
)
def test_a_statistic_is_its_numbers(statistic):
    assert from_numbers(statistic, iter(numbers(statistic))) == statistic
    doubled = [2 * number for number in numbers(statistic)]
    assert from_numbers(statistic, iter(doubled)) == statistic + statistic


def test_a_run_goes_on_with_the_same_bits_and_verifies(tmp_path):
    defined = federation(4, stages=WEIGHTED, secure=kn.SecureSum(clip=1.0))
    whole = run(defined, tmp_path)
    first = run(federation(2, stages=WEIGHTED, secure=kn.SecureSum(clip=1.0)), tmp_path)
    assert [record.digest for record in first.history] == [record.digest for record in whole.history[:2]]
    store = Store(tmp_path / whole.info.id)
    store.verify()
    assert "the server learns the sum of a round and no update" in store.info().secure
    store.close()


@pytest.mark.parametrize("group_size", [None, 3])
def test_all_of_the_cryptography_comes_to_the_same_integers(group_size, tmp_path, monkeypatch):
    masked = []
    monkeypatch.setattr(
        "koinon.secure.client.add_masks", lambda words, *seeds: masked.append(1) or add_masks(words, *seeds)
    )
    defined = federation(2, stages=WEIGHTED, secure=kn.SecureSum(clip=1.0, bits=24, group_size=group_size))
    fast, whole = run(defined, tmp_path), run(defined, tmp_path, faithful=True)
    assert len(masked) == 2 * 6
    if group_size is None:  # who is with whom follows from the keys, and sums of groups are rounded to float32
        assert fast.digest == whole.digest
    assert torch.allclose(fast.vector, whole.vector, atol=1e-6)
    assert [record.federated for record in fast.history] == [record.federated for record in whole.history]
    assert [record.bytes_up for record in fast.history] == [record.bytes_up for record in whole.history]


def test_faithful_rounds_leave_out_who_fails_and_end_where_too_few_are_left(tmp_path):
    def some(broken):
        def client(client):
            whole = examples(client)
            return kn.Samples(whole.inputs / 0 if int(client) < broken else whole.inputs, whole.targets)

        return Population.of(client, size=6)

    secret = federation(1, stages=(), secure=kn.SecureSum(clip=1.0))
    two = [
        kn.simulate(secret, some(2), runs=tmp_path, progress=Quiet(), faithful=faithful).digest
        for faithful in (False, True)
    ]
    assert two[0] == two[1]
    with pytest.raises(ClientFailed):
        kn.simulate(secret, some(4), runs=tmp_path, progress=Quiet(), faithful=True)


REFUSED = [
    ({"codec": kn.Eden(1), "stages": ()}, "leave codec= out and choose bits="),
    ({}, r"Weight\(at_most=examples\)"),
    ({"stages": (), "sample": kn.Poisson(0.5)}, r"Uniform\(count\)"),
    ({"stages": (), "sample": kn.Weighted(4)}, r"Uniform\(count\)"),
    ({"stages": (), "sample": kn.Uniform(2)}, "below minimum=3"),
    ({"stages": (), "reducer": kn.Median()}, r"SecureSum\(group_size"),
    ({"stages": (kn.AdaptiveClip(),)}, "clip of fixed norm"),
]


@pytest.mark.parametrize(("arguments", "cure"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_added_up_secretly_is_refused_with_the_cure(arguments, cure):
    with pytest.raises(AdmissionError, match=cure):
        kn.fedavg(secure=kn.SecureSum(clip=1.0), **arguments)


def test_a_sum_by_two_servers_is_no_strategys():
    with pytest.raises(AdmissionError, match="a strategy adds up by SecureSum, and SecretShared runs by"):
        kn.fedavg(stages=(), secure=kn.secure.SecretShared(clip=1.0))


def test_rules_that_remember_clients_are_refused_over_groups_and_others_count_groups():
    secure = kn.SecureSum(clip=1.0, group_size=3)
    for rule in (kn.FoolsGold(), kn.Quarantine(kn.Mean()), kn.NearestNeighborMixing(kn.FoolsGold(), 1)):
        with pytest.raises(AdmissionError, match="the groups of a SecureSum are drawn anew"):
            kn.fedavg(stages=(), secure=secure, reducer=rule)
    trimmed = kn.fedavg(stages=(), secure=secure, reducer=kn.TrimmedMean(1))
    assert (trimmed.least_rows, trimmed.least) == (3, 9)
    with pytest.raises(AdmissionError, match="needs 3 updates in a round, and there are 2"):
        kn.fedavg(stages=(), secure=secure, reducer=kn.TrimmedMean(1), sample=kn.Uniform(8))
