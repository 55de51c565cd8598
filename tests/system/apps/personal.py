"""Personal layers: what clients keep of one round decides what they send in the next, and how they judge."""

import torch
from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.Personal(
        kn.TorchLearner(
            lambda: nn.Sequential(nn.Linear(999, 600), nn.Linear(600, 3)),
            nn.CrossEntropyLoss(),
            batch_size=2,
            metrics=(kn.Accuracy(),),
        ),
        layers=("1.*",),
    ),
    strategy=kn.fedavg(),
    rounds=3,
)


def client(name):
    rng = torch.Generator().manual_seed(int(name))
    inputs, targets = torch.randn(8, 999, generator=rng), torch.randint(3, (8,), generator=rng)
    return kn.DataSet(kn.Samples(inputs[:4], targets[:4]), kn.Samples(inputs[4:], targets[4:]))


def population(clients=2):
    return kn.Population.of(client, size=clients)
