"""Heart disease in four real hospitals: `koinon up examples/hospitals.py --nodes 4`, or `make demo`.

`:private`, as in the demo, hides each hospital's update in a secure sum and protects each hospital by noise in the sum.
With liars, two nodes for each hospital: `koinon up examples/hospitals.py:robust --nodes 8 --attack SignFlip:10 --liars 2`.
"""

import functools
from dataclasses import replace

import torch
from torch import nn

import koinon as kn


def model():
    """Logistic regression: 13 inputs, two logits, healthy and ill."""
    return nn.Linear(13, 2)


federation = kn.Federation(
    learner=kn.TorchLearner(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.05),
        epochs=1,
        batch_size=16,
        metrics=(kn.Accuracy(), kn.AUROC()),
    ),
    strategy=kn.fedavg(),
    rounds=100,
)


private = replace(
    federation,
    learner=replace(federation.learner, epochs=5, optimizer=functools.partial(torch.optim.SGD, lr=0.1)),
    strategy=kn.fedavg(stages=(kn.Clip(0.1), kn.GaussianNoise(3.3, cohort=4)), secure=kn.SecureSum(clip=0.1)),
    rounds=30,
    evaluation=kn.Evaluation(federated=False),
    budget=kn.Budget(epsilon=8.0, delta=1e-5),
)


robust = replace(federation, strategy=kn.fedavg(reducer=kn.Quarantine(kn.NearestNeighborMixing(kn.TrimmedMean(2), 2))))


def population(clients=4):
    """One client per hospital, each with its own train and test part; more are so many parts of each hospital's patients."""
    hospitals = kn.data.load("heart-disease").split(kn.Natural())
    if clients <= len(hospitals):
        return hospitals.first(clients)
    parts = -(-clients // len(hospitals))

    def part(name, place):
        whole = hospitals[name]
        return kn.DataSet(whole.train.subset(range(place, len(whole.train), parts)), whole.test)

    return kn.Population.of({f"{name}-{n + 1}": part(name, n) for n in range(parts) for name in hospitals.ids})


def data(source):
    """A node's own patients: `koinon join ... --data cleveland`."""
    return kn.data.load("heart-disease", site=source)
