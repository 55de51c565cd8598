"""Clients that hold copies of one example each, of lines that do not agree: every batch has the same gradient."""

import functools

import torch
from torch import nn

import koinon as kn
from koinon.view.progress import Quiet

CLIENTS, RATE, BATCH = 6, 0.05, 4
COPIES = (4, 8, 12, 4, 20, 16)
EVERYONE = tuple(range(CLIENTS))


def line():
    return nn.Linear(3, 1)


def example(client):
    """(inputs and a 1, target), in float64."""
    signs = [1.0 - 2 * (client >> place & 1) for place in range(3)]
    return torch.tensor([*signs, 1.0]).double(), torch.randn(
        1, generator=torch.Generator().manual_seed(client)
    ).double()


def samples(client, copies=COPIES):
    design, target = example(client)
    return kn.Samples(design[:3].float().repeat(copies[client], 1), target.float().repeat(copies[client], 1))


def gradient(model, client):
    """Of the mean squared error, with respect to (weights, bias), in float64."""
    design, target = example(client)
    return 2 * (design @ model - target) * design


def loss(model, client):
    design, target = example(client)
    return ((design @ model - target) ** 2).item()


def optimum(weights):
    """Where the weighted mean of all clients' losses is least."""
    designs, targets = (torch.stack(parts) for parts in zip(*map(example, EVERYONE), strict=True))
    roots = torch.tensor(weights).double().sqrt()[:, None]
    return torch.linalg.lstsq(roots * designs, roots * targets).solution[:, 0]


def federation(strategy, rounds=3, epochs=2, batch=BATCH, make=line, rate=RATE, **descent):
    optimizer = functools.partial(torch.optim.SGD, lr=rate, **descent)
    learner = kn.TorchLearner(make, nn.MSELoss(), optimizer, epochs=epochs, batch_size=batch)
    return kn.Federation(learner, strategy, rounds, kn.Evaluation(federated=False))


def simulated(defined, folder, copies=COPIES, **settings):
    population = kn.Population.of(functools.partial(samples, copies=copies), size=CLIENTS)
    return kn.simulate(defined, population, runs=folder, progress=Quiet(), **settings)


def trained(run):
    """The model of a run, in float64, without what travels beside it."""
    return run.vector[:4].double()


def first():
    """The model before round 1, in float64."""
    return federation(kn.fedavg()).learner.initial(0).double()


def cohorts(run):
    return [[int(part.client) for part in record.participants] for record in run.history]
