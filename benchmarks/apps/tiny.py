"""1,000 parameters and 20 examples for each client: what is left of a round is the system's own."""

import torch
from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.TorchLearner(lambda: nn.Linear(99, 10), loss=nn.CrossEntropyLoss(), batch_size=20),
    strategy=kn.fedavg(),
    rounds=50,
)


def client(name):
    rng = torch.Generator().manual_seed(int(name))
    return kn.Samples(torch.randn(20, 99, generator=rng), torch.randint(10, (20,), generator=rng))


def population(clients=10):
    return kn.Population.of(client, size=clients)
