"""2.4 MB of values where 20 seconds are enough for them, and one bit for each where they are not."""

from functools import partial

import torch
from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.TorchLearner(partial(nn.Linear, 999, 600), nn.CrossEntropyLoss(), batch_size=2),
    strategy=kn.fedavg(codec=kn.Fitted((kn.Float32(), kn.Eden(1)), seconds=20.0)),
    rounds=3,
    evaluation=kn.Evaluation(federated=False),
)


def client(name):
    rng = torch.Generator().manual_seed(int(name))
    return kn.Samples(torch.randn(4, 999, generator=rng), torch.randint(600, (4,), generator=rng))


def population(clients=2):
    return kn.Population.of(client, size=clients)
