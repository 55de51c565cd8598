"""Logistic regression on breast cancer with noise on the server's sums."""

import functools

import torch
from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.TorchLearner(
        nn.Linear(30, 2),
        loss=nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        metrics=[kn.Accuracy()],
    ),
    strategy=kn.fedavg(stages=(kn.Clip(1.0), kn.GaussianNoise(1.5, cohort=3))),
    rounds=3,
    evaluation=kn.Evaluation(test=lambda: kn.data.load("breast-cancer"), federated=False),
)


def population(clients=3):
    return kn.data.load("breast-cancer").split(kn.IID(), clients=clients, seed=0)
