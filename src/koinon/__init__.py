"""Koinon: train one model over data that never leaves its owners.

import koinon as kn
"""

from koinon import data, privacy
from koinon.aggregate.mean import Mean
from koinon.aggregate.vote import MajorityVote
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
from koinon.update.clip import Clip, ClipL1, ClipLayers
from koinon.update.codec import Float32
from koinon.update.eden import Eden
from koinon.update.feedback import ErrorFeedback
from koinon.update.floats import BFloat16, Float16
from koinon.update.lowrank import LowRank
from koinon.update.noise import GaussianNoise, LaplaceNoise, Local
from koinon.update.quantize import Quantize
from koinon.update.rotate import Rotate
from koinon.update.sign import Sign
from koinon.update.sparsify import RandomMask, TopK, ternary
from koinon.update.weight import Weight
from koinon.update.zstd import Zstd

__all__ = [
    "AUROC",
    "DPSGD",
    "IID",
    "R2",
    "Accuracy",
    "AdmissionError",
    "BFloat16",
    "Budget",
    "Calibration",
    "ClientFailed",
    "Clip",
    "ClipL1",
    "ClipLayers",
    "DataSet",
    "Dirichlet",
    "Eden",
    "EqualDirichlet",
    "ErrorFeedback",
    "Evaluation",
    "Everyone",
    "Federation",
    "Float16",
    "Float32",
    "GaussianNoise",
    "KoinonError",
    "LaplaceNoise",
    "Local",
    "LowRank",
    "MajorityVote",
    "Mean",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Natural",
    "Poisson",
    "PolicyRefused",
    "Population",
    "ProtocolViolation",
    "QuantitySkew",
    "Quantize",
    "RandomMask",
    "Rotate",
    "RoundRobin",
    "Run",
    "Samples",
    "Shards",
    "Sign",
    "Strategy",
    "TopK",
    "TorchLearner",
    "Unavailable",
    "Uniform",
    "VerificationFailed",
    "Weight",
    "Weighted",
    "Yogi",
    "Zstd",
    "calibrate",
    "data",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedprox",
    "fedyogi",
    "privacy",
    "simulate",
    "ternary",
]
