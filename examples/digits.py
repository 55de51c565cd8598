"""Handwritten digits over many clients: `koinon simulate examples/digits.py --clients 20 --rounds 20`."""

import functools

import torch
from torch import nn

import koinon as kn

digits = kn.data.load("digits")


def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


federation = kn.Federation(
    learner=kn.TorchLearner(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.3),
        epochs=5,
        batch_size=16,
        metrics=(kn.Accuracy(),),
    ),
    strategy=kn.fedavg(),
    rounds=20,
    evaluation=kn.Evaluation(test=lambda: digits.test),
)


def population(clients=20):
    return digits.split(kn.IID(), clients=clients, seed=0)


def data(source):
    """A node's own data: a CSV of 64 pixels and a label."""
    return kn.data.load(source)
