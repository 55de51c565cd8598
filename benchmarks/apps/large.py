"""25 million parameters, 100 MB, in one layer; two examples for each client, since it is the bytes that count."""

import torch
from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.TorchLearner(lambda: nn.Linear(4999, 5000), loss=nn.CrossEntropyLoss(), batch_size=2),
    strategy=kn.fedavg(),
    rounds=5,
)


def client(name):
    rng = torch.Generator().manual_seed(int(name))
    return kn.Samples(torch.randn(2, 4999, generator=rng), torch.randint(5000, (2,), generator=rng))


def population(clients=1):
    return kn.Population.of(client, size=clients)
