"""A model that no socket's buffers hold: who does not read it keeps the server waiting."""

from torch import nn

import koinon as kn

federation = kn.Federation(
    learner=kn.TorchLearner(lambda: nn.Linear(4000, 4000), loss=nn.CrossEntropyLoss()), strategy=kn.fedavg(), rounds=1
)
