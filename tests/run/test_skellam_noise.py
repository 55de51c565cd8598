"""Noise that clients add within the secure sum: how much is in every sum, and who is counted on."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.errors import AdmissionError, ProtocolViolation
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.run.summing import contribution
from koinon.secure import client
from koinon.secure.events import Begin
from koinon.update.codec import InMemory, floats_as_bytes
from koinon.view.progress import Quiet

CLIENTS, NORM, MULTIPLIER = 12, 0.5, 2.0


def federation(minimum=10, bits=24, **secure):
    return kn.Federation(
        kn.TorchLearner(lambda: nn.Linear(99, 10), loss=nn.CrossEntropyLoss()),
        kn.fedavg(
            stages=(kn.Clip(NORM), kn.SkellamNoise(MULTIPLIER, cohort=CLIENTS)),
            secure=kn.SecureSum(clip=NORM, bits=bits, minimum=minimum, **secure),
        ),
        rounds=1,
        evaluation=kn.Evaluation(federated=False),
    )


def population(clients=CLIENTS):
    def examples(client):
        rng = torch.Generator().manual_seed(int(client))
        return kn.Samples(torch.randn(20, 99, generator=rng), torch.randint(10, (20,), generator=rng))

    return kn.Population.of(examples, size=clients)


def test_every_sum_holds_the_promised_noise_of_those_who_are_honest(tmp_path):
    defined = federation()
    plain = dataclasses.replace(defined, strategy=kn.fedavg(stages=(kn.Clip(NORM),)))
    noisy, bare = (
        kn.simulate(each, population(), runs=tmp_path / str(place), progress=Quiet())
        for place, each in enumerate((defined, plain))
    )
    noise = (noisy.vector - bare.vector) * CLIENTS
    honest = 10 - math.ceil(0.1 * CLIENTS)
    expected = MULTIPLIER * NORM * math.sqrt(CLIENTS / honest)
    assert noise.std() == pytest.approx(expected, rel=0.1)
    assert abs(noise.mean()) < 4 * expected / math.sqrt(len(noise))
    assert noisy.guarantees["sum"].unit == "client" and noisy.epsilon > 0


def test_fewer_who_are_counted_on_means_more_noise_from_each():
    rings = [federation(minimum).scheme.ring(CLIENTS, 1000) for minimum in (4, 10)]
    assert rings[0].noise == pytest.approx(MULTIPLIER * NORM / math.sqrt(2))
    assert rings[1].noise == pytest.approx(MULTIPLIER * NORM / math.sqrt(8))


def test_noise_of_nobody_is_refused():
    with pytest.raises(AdmissionError, match="raise minimum above 2"):
        kn.SecureSum(clip=1.0, minimum=2, noise=1.0, step=1e-3).ring(CLIENTS, 10)
    with pytest.raises(AdmissionError, match="give SecureSum no tallies and no noise"):
        kn.fedavg(stages=(), secure=kn.SecureSum(clip=1.0, noise=1.0, step=1e-3))


def test_a_ring_that_is_too_narrow_for_the_noise_is_refused_with_the_bits_that_it_takes():
    with pytest.raises(AdmissionError, match=r"needs bits=1\d"):
        federation(bits=8)


def test_an_update_is_as_short_in_the_ring_as_the_noise_counts_on():
    defined = federation()
    ring = dataclasses.replace(defined.scheme.ring(CLIENTS, 1000), noise=0.0)
    for seed in range(20):
        vector = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        vector *= NORM / vector.norm()
        told = dataclasses.make_dataclass("Told", ["weight", "examples", "metrics"])(1.0, 1, {})
        update = InMemory(floats_as_bytes(vector))
        encoded = contribution(defined, seed, Noise.seeded(0), 1, "c", ring, update, told)
        assert 0.99 * NORM < ring.norm(encoded) <= NORM


def test_the_room_that_a_ring_has_for_noise_is_not_the_updates(tmp_path):
    defined = federation(bits=24)
    defined = dataclasses.replace(
        defined, strategy=dataclasses.replace(defined.strategy, secure=kn.SecureSum(clip=0.01, bits=24, minimum=10))
    )
    ring = dataclasses.replace(defined.scheme.ring(CLIENTS, 1000), noise=0.0)
    assert ring.clip > 0.1
    told = dataclasses.make_dataclass("Told", ["weight", "examples", "metrics"])(1.0, 1, {})
    update = InMemory(floats_as_bytes(torch.full((1000,), 0.015)))
    encoded = contribution(defined, 0, Noise.seeded(0), 1, "c", ring, update, told)
    assert abs(ring.decode(encoded, 1)[0].mean() - 0.01) < ring.resolution


def test_two_clients_and_two_rounds_have_noise_of_their_own_and_one_client_the_same_again():
    defined = federation()
    ring = defined.scheme.ring(CLIENTS, 1000)
    told = dataclasses.make_dataclass("Told", ["weight", "examples", "metrics"])(1.0, 1, {})
    update = InMemory(floats_as_bytes(torch.zeros(1000)))

    def noise(client, round):
        return contribution(defined, 0, Noise.seeded(7), round, client, ring, update, told)

    assert (noise("a", 1) == noise("a", 1)).all()
    assert (noise("a", 1) != noise("b", 1)).mean() > 0.9
    assert (noise("a", 1) != noise("a", 2)).mean() > 0.9


def test_an_update_with_noise_of_its_own_is_masked_for_one_attempt_only():
    """Two sums with the same noise could be subtracted; two with fresh noise would be two releases."""
    scheme = kn.SecureSum(clip=1.0, dropout=0.1, step=1e-3, noise=0.5)
    masked = _masked(scheme)
    with pytest.raises(ProtocolViolation, match="covers its update 1 once"):
        client.step(*masked, Begin(2, 1), _entropy)
    client.step(*masked, Begin(65, 2), _entropy)
    client.step(*_masked(dataclasses.replace(scheme, noise=0.0)), Begin(2, 1), _entropy)


def _entropy(length):
    return generator(0, "entropy", length).get_state().numpy().tobytes()[:length]


def _masked(scheme):
    """A client's party and state once it has masked its update."""
    from tests.secure.world import World

    world = World(scheme=scheme)
    world.until("agree")
    return world.parties["n000"], world.states["n000"]
