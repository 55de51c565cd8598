"""A million parameters and 100 examples for each client; `:secret` adds up by a secure sum of 16 bits a coordinate."""

from dataclasses import replace

import torch
from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.TorchLearner(lambda: nn.Linear(1000, 1000), loss=nn.CrossEntropyLoss(), batch_size=20),
    strategy=kn.fedavg(stages=()),
    rounds=20,
)

secret = replace(federation, strategy=kn.fedavg(stages=(), secure=kn.SecureSum(clip=0.1, bits=16)))


def client(name):
    rng = torch.Generator().manual_seed(int(name))
    return kn.Samples(torch.randn(100, 1000, generator=rng), torch.randint(1000, (100,), generator=rng))


def population(clients=10):
    return kn.Population.of(client, size=clients)
