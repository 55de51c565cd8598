"""SCAFFOLD: what clients keep of one round decides what they send in the next."""

import torch
from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.TorchLearner(lambda: nn.Linear(999, 600), nn.CrossEntropyLoss(), batch_size=2),
    strategy=kn.scaffold(clients=2),
    rounds=3,
    evaluation=kn.Evaluation(federated=False),
)


def client(name):
    rng = torch.Generator().manual_seed(int(name))
    return kn.Samples(torch.randn(4, 999, generator=rng), torch.randint(600, (4,), generator=rng))


def population(clients=2):
    return kn.Population.of(client, size=clients)
