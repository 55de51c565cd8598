"""What the server sees of a masked update is uniform, even when it knows every mask but one.

Statistical tests over many views at one significance level; keys, and with them the views, follow from fixed seeds, so
that a test passes always or never.
"""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from koinon.secure import keys, server
from koinon.secure.keys import KeyPair, pair_seed, self_mask_seed
from koinon.secure.mask import add_masks
from koinon.secure.secure_sum import SecureSum
from tests.secure.world import World

ALPHA = 1e-3
VIEWS, LENGTH = 120, 256
ME, OTHER = "n001", "n003"


@pytest.fixture(autouse=True)
def fixed_encapsulations(monkeypatch):
    """ML-KEM's own draws are the one thing that no seed decides; here its secret follows from the ciphertext instead."""
    drawn = iter(range(10**9))

    def encapsulated(public):
        ciphertext = hashlib.shake_256(public.mlkem + str(next(drawn)).encode()).digest(1088)
        return hashlib.sha256(ciphertext).digest(), ciphertext

    monkeypatch.setattr(keys, "_encapsulated", encapsulated)
    monkeypatch.setattr(KeyPair, "opened", lambda self, ciphertext: hashlib.sha256(ciphertext).digest())


def view(bits, seed, unknown, vector):
    """A masked update after the server took away all it knows: the self-mask, and all pairwise masks but some."""
    world = World(5, SecureSum(clip=1.0, bits=bits, dropout=0.1), length=LENGTH, seed=seed)
    world.vectors[ME] = vector
    told = world.until("mask")[ME]
    (masked,) = world.hear(ME, told)
    secrets, cohort = world.states[ME].round.secrets, server.cohort(world.host, world.hall)
    plus, minus = [], [self_mask_seed(cohort.setting, secrets.self_mask, ME)]
    for name in told.parcels:
        if name in unknown:
            continue
        pairing = world.hall.shares[min(ME, name)].parcels[max(ME, name)].pairing
        advert = world.hall.adverts[name]
        seed = pair_seed(cohort.setting, KeyPair.of(secrets.mask), (ME, name), advert, pairing)
        (minus if name > ME else plus).append(seed)
    left = add_masks(cohort.ring.unpack(masked.data), plus, minus)
    return left & left.dtype.type(2**bits - 1), world.encoded(ME, cohort.ring)


def views(bits, unknown, vector):
    return np.stack([view(bits, seed, unknown, vector)[0] for seed in range(VIEWS)])


def uniform(seen, bits):
    """p-values: of the values' distribution, of every byte's, of sums within a view, and of each place over the views."""
    values = seen.astype(np.float64) / 2**bits
    counts = [np.bincount((seen.reshape(-1) >> shift) & 0xFF, minlength=256) for shift in range(0, bits, 8)]
    means = (values.mean(1) - 0.5) * np.sqrt(12 * seen.shape[1])
    places = (values.mean(0) - 0.5) * np.sqrt(12 * seen.shape[0])
    return [
        stats.kstest(values.reshape(-1), "uniform").pvalue,
        *(stats.chisquare(count).pvalue for count in counts),
        stats.kstest(means, "norm").pvalue,
        stats.kstest(places, "norm").pvalue,
    ]


VECTORS = {"zeros": torch.zeros(LENGTH), "the clip": torch.ones(LENGTH), "a ramp": torch.linspace(-1, 1, LENGTH)}


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("vector", VECTORS.values(), ids=list(VECTORS))
def test_with_one_neighbours_mask_unknown_a_masked_update_is_uniform(bits, vector):
    p = uniform(views(bits, {OTHER}, vector), bits)
    assert min(p) > ALPHA / len(p), p


def test_views_of_different_updates_cannot_be_told_apart():
    one, other = (views(16, {OTHER}, VECTORS[name]) for name in ("zeros", "the clip"))
    assert stats.ks_2samp(one.reshape(-1), other.reshape(-1)).pvalue > ALPHA


def test_with_every_mask_known_it_is_the_update_and_the_test_sees_it():
    """The control: the same views without the one unknown mask are told from uniform, and are the update itself."""
    seen, encoded = view(16, 0, set(), VECTORS["a ramp"])
    assert (seen == encoded).all()
    seen = views(16, set(), VECTORS["a ramp"])
    assert min(uniform(seen, 16)) < 1e-12


def test_a_view_holds_nothing_of_the_update_that_correlates():
    """The masked values' product with the update's sign, over all views, is as small as chance makes it."""
    vector = VECTORS["a ramp"]
    seen = views(16, {OTHER}, vector)[:, :LENGTH] / 2.0**16 - 0.5
    score = (seen * np.sign(vector.numpy())).sum() * np.sqrt(12 / seen.size)
    assert abs(score) < stats.norm.isf(ALPHA / 2)
