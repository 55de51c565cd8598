"""Heart disease in four real hospitals: `koinon up examples/hospitals.py --nodes 4`, or `make demo`."""

import functools

import torch
from torch import nn

import koinon as kn


def model():
    """Logistic regression: 13 inputs, two logits, healthy and ill."""
    return nn.Linear(13, 2)


federation = kn.Federation(
    learner=kn.TorchLearner(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.05),
        epochs=1,
        batch_size=16,
        metrics=(kn.Accuracy(), kn.AUROC()),
    ),
    strategy=kn.fedavg(),
    rounds=100,
)


def population(clients=4):
    """Everyone at once, for a simulation: one client per hospital, each with its own train and test part."""
    return kn.data.load("heart-disease").split(kn.Natural(), clients)


def data(source):
    """A node's own patients: `koinon join ... --data cleveland`."""
    return kn.data.load("heart-disease", site=source)
