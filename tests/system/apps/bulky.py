"""Little data and a model of several chunks, so that every process can be killed between two of them."""

import torch
from torch import nn

import koinon as kn

WIDTH = 680


def model():
    return nn.Sequential(nn.Linear(8, 1024), nn.Tanh(), nn.Linear(1024, WIDTH))


federation = kn.Federation(
    learner=kn.TorchLearner(model, loss=nn.CrossEntropyLoss(), batch_size=4),
    # Adam's moments are three quarters of a checkpoint that a restart must bring back; the clip's norm travels down.
    strategy=kn.fedadam(stages=(kn.Weight(), kn.AdaptiveClip(0.01))),
    rounds=2,
)


def examples(client, count):
    rng = torch.Generator().manual_seed(client)
    return kn.Samples(torch.randn(count, 8, generator=rng), torch.randint(WIDTH, (count,), generator=rng))


def population(clients=2):
    return kn.Population.of(lambda client: kn.DataSet(examples(client, 6 + client), examples(99, 4)), size=clients)
