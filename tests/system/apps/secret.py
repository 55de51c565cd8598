"""The smallest federation that still has everything: a test set, held-out data, metrics, clients of unequal size."""

import torch
from torch import nn

import koinon as kn


def model():
    return nn.Linear(4, 3)


def examples(client, count):
    rng = torch.Generator().manual_seed(client)
    inputs = torch.randn(count, 4, generator=rng)
    return kn.Samples(inputs, inputs[:, :3].argmax(1))


federation = kn.Federation(
    learner=kn.TorchLearner(model, loss=nn.CrossEntropyLoss(), batch_size=8, metrics=(kn.Accuracy(),)),
    strategy=kn.fedavg(stages=(kn.Weight(at_most=1000),), secure=kn.SecureSum(clip=1.0)),
    rounds=3,
    evaluation=kn.Evaluation(test=lambda: examples(1000, 50)),
)


def population(clients=3):
    return kn.Population.of(
        lambda client: kn.DataSet(examples(client, 10 + 3 * client), examples(100 + client, 5)), size=clients
    )


def data(source):
    return kn.data.load(source, target="class")
