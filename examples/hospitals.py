"""Heart disease in four real hospitals: `koinon up examples/hospitals.py --nodes 4`, or `make demo`.

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
