"""Koinon: train one model over data that never leaves its owners.

import koinon as kn
"""

from koinon import data, privacy
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
from koinon.learn.dpsgd import DPSGD
from koinon.learn.metrics import AUROC, R2, Accuracy, MeanAbsoluteError, MeanSquaredError
from koinon.learn.torch import TorchLearner
from koinon.privacy.budget import Budget
from koinon.privacy.calibrate import Calibration, calibrate
from koinon.run.result import Run
from koinon.run.simulate import simulate
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Uniform, Weighted
from koinon.server.yogi import Yogi
from koinon.strategy.recipes import fedadagrad, fedadam, fedavg, fedprox, fedyogi
from koinon.strategy.strategy import Strategy
from koinon.update.adaptive import AdaptiveClip
from koinon.update.clip import Clip, ClipL1, ClipLayers
from koinon.update.codec import Float32
from koinon.update.correlated import CorrelatedNoise
from koinon.update.noise import GaussianNoise, LaplaceNoise, Local
from koinon.update.weight import Weight

__all__ = [
    "AUROC",
    "DPSGD",
    "IID",
    "R2",
    "Accuracy",
    "AdaptiveClip",
    "AdmissionError",
    "Budget",
    "Calibration",
    "ClientFailed",
    "Clip",
    "ClipL1",
    "ClipLayers",
    "CorrelatedNoise",
    "DataSet",
    "Dirichlet",
    "EqualDirichlet",
    "Evaluation",
    "Everyone",
    "Federation",
    "Float32",
    "GaussianNoise",
    "KoinonError",
    "LaplaceNoise",
    "Local",
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
    "calibrate",
    "data",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedprox",
    "fedyogi",
    "privacy",
    "simulate",
]
