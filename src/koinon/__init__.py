"""Koinon: train one model over data that never leaves its owners.

import koinon as kn
"""

from koinon import data
from koinon.aggregate.mean import Mean
from koinon.core.errors import (
    AdmissionError,
    ClientFailed,
    KoinonError,
    PolicyRefused,
    ProtocolViolation,
    Unavailable,
    VerificationFailed,
)
from koinon.data import IID, DataSet, Dirichlet, EqualDirichlet, Natural, Population, QuantitySkew, Samples, Shards
from koinon.evaluate.evaluation import Evaluation
from koinon.federation import Federation
from koinon.learn.metrics import AUROC, R2, Accuracy, MeanAbsoluteError, MeanSquaredError
from koinon.learn.torch import TorchLearner
from koinon.run.result import Run
from koinon.run.simulate import simulate
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Uniform, Weighted
from koinon.server.yogi import Yogi
from koinon.strategy.recipes import fedadagrad, fedadam, fedavg, fedprox, fedyogi
from koinon.strategy.strategy import Strategy
from koinon.update.clip import Clip
from koinon.update.codec import Float32
from koinon.update.weight import Weight

__all__ = [
    "AUROC",
    "IID",
    "R2",
    "Accuracy",
    "AdmissionError",
    "ClientFailed",
    "Clip",
    "DataSet",
    "Dirichlet",
    "EqualDirichlet",
    "Evaluation",
    "Everyone",
    "Federation",
    "Float32",
    "KoinonError",
    "Mean",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Natural",
    "Poisson",
    "PolicyRefused",
    "Population",
    "ProtocolViolation",
    "QuantitySkew",
    "RoundRobin",
    "Run",
    "Samples",
    "Shards",
    "Strategy",
    "TorchLearner",
    "Unavailable",
    "Uniform",
    "VerificationFailed",
    "Weight",
    "Weighted",
    "Yogi",
    "data",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedprox",
    "fedyogi",
    "simulate",
]
