"""How unlike clients are: measures with known values, and a picture."""

import math

import pytest
import torch

import koinon as kn
from koinon.data.heterogeneity import Heterogeneity


def client(*targets):
    return kn.Samples(torch.zeros(len(targets), 1), torch.tensor(targets))


def measured(*clients):
    return Heterogeneity.of(kn.Population.of(list(clients)))


def test_clients_that_are_alike_are_at_no_distance():
    found = measured(client(0, 1, 5), client(5, 0, 1))
    assert found.classes == (0, 1, 5)
    assert found.counts.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert (found.label_distance, found.effective_clients) == (0.0, 2.0)
    assert found.effective_classes == pytest.approx(3)


def test_clients_of_one_class_each_are_as_far_apart_as_can_be():
    found = measured(*(client(*[label] * 7) for label in range(4)))
    assert found.label_distance == pytest.approx(3 / 4)
    assert found.effective_classes == pytest.approx(1)


def test_sizes_weigh():
    found = measured(client(*[0] * 30), client(*[1] * 10))
    assert found.effective_clients == pytest.approx(40**2 / (30**2 + 10**2))
    assert found.label_distance == pytest.approx(0.75 * 0.25 + 0.25 * 0.75)
    assert found.summary()["smallest"] == 10


def test_the_entropy_of_a_mixture_is_told_in_classes():
    found = measured(client(0, 0, 0, 1), client(0, 0, 0, 1))
    assert found.effective_classes == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_more_skew_is_more_distance():
    digits = kn.data.load("digits")
    found = [Heterogeneity.of(digits.split(kn.Dirichlet(alpha), 20, 0)).label_distance for alpha in (100, 1, 0.1)]
    assert found[0] < 0.2 < found[1] < 0.5 < found[2]


def test_what_has_no_classes_is_refused():
    with pytest.raises(kn.AdmissionError, match="label skew needs one whole number per target"):
        measured(kn.Samples(torch.zeros(3, 1), torch.zeros(3, 1)))
