"""Fashion-MNIST at ten sites of 1,000 images each and unequal labels, a convolutional network of 1.67 million parameters."""

import functools

import torch
from torch import nn

import koinon as kn

SITES, IMAGES, ROUNDS = 10, 1000, 60


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 1050), nn.ReLU(), nn.Linear(1050, 10),
    )  # fmt: skip


def federation_of(strategy: kn.Strategy) -> kn.Federation:
    learner = kn.TorchLearner(
        network,
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.15),
        batch_size=20,
        eval_batch_size=100,
        metrics=(kn.Accuracy(),),
    )
    return kn.Federation(learner, strategy, ROUNDS, kn.Evaluation(held_out, every=2, federated=False))


def population(clients: int = SITES) -> kn.Population:
    data = kn.data.load("fashion-mnist").train
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: IMAGES * clients]
    inputs, targets = data.batch(some)
    return kn.DataSet(kn.Samples(inputs, targets)).split(kn.Dirichlet(0.3), clients=clients, seed=0)


def held_out() -> kn.Samples:
    test = kn.data.load("fashion-mnist").test
    assert test is not None
    return kn.Samples(*test.batch(torch.arange(len(test))))


plain = federation_of(kn.fedavg())
light = federation_of(kn.fedavg(codec=kn.Eden(1), downlink=kn.ErrorFeedback(kn.Quantize(8))))
