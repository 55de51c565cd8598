"""Updates of several pieces through a codec that remembers, chooses places, rounds at random and packs."""

import torch
from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.TorchLearner(lambda: nn.Linear(999, 600), nn.CrossEntropyLoss(), batch_size=2),
    strategy=kn.fedavg(codec=kn.ErrorFeedback(kn.TopK(0.6) >> kn.Rotate() >> kn.Quantize(8) >> kn.Zstd())),
    rounds=3,
    evaluation=kn.Evaluation(federated=False),
)


def client(name):
    rng = torch.Generator().manual_seed(int(name))
    return kn.Samples(torch.randn(4, 999, generator=rng), torch.randint(600, (4,), generator=rng))


def population(clients=2):
    return kn.Population.of(client, size=clients)
