"""Koinon: train one model over data that never leaves its owners.

import koinon as kn
"""

from koinon import attack, data, privacy, secure
from koinon.aggregate.clipping import CenteredClipping, NormClipping
from koinon.aggregate.coordinatewise import MeanAroundMedian, Median, TrimmedMean
from koinon.aggregate.defence import AdaptiveDefence
from koinon.aggregate.detect import Quarantine
from koinon.aggregate.distance import CAF, FABA, Bulyan, Krum, MinimumDiameter, MultiKrum
from koinon.aggregate.filtering import FLAME, DnC, FoolsGold, SignGuard
from koinon.aggregate.geometric import GeometricMedian
from koinon.aggregate.mean import Mean
from koinon.aggregate.mixing import AdaptiveRobustClipping, Bucketing, NearestNeighborMixing
from koinon.aggregate.rooted import FLTrust, Zeno
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
from koinon.core.network import Network
from koinon.data import IID, DataSet, Dirichlet, EqualDirichlet, Natural, Population, QuantitySkew, Samples, Shards
from koinon.data.devices import Clock, Device, Fleet, Trace
from koinon.evaluate.evaluation import Evaluation
from koinon.evaluate.stopping import EarlyStopping
from koinon.federation import Federation
from koinon.learn.dpsgd import DPSGD
from koinon.learn.metrics import AUROC, R2, Accuracy, MeanAbsoluteError, MeanSquaredError
from koinon.learn.personal import Personal, batch_norms
from koinon.learn.torch import TorchLearner
from koinon.privacy.budget import Budget
from koinon.privacy.calibrate import Calibration, calibrate
from koinon.run.attacked import Attacked
from koinon.run.debugged import Debugged
from koinon.run.ray import OnRay
from koinon.run.result import Run
from koinon.run.simulate import simulate
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.secure_sum import SecureSum
from koinon.server.sampling import Everyone, Poisson, RoundRobin, Uniform, Weighted
from koinon.server.yogi import Yogi
from koinon.strategy.afl import afl
from koinon.strategy.ditto import ditto
from koinon.strategy.fedbuff import fedasync, fedbuff
from koinon.strategy.feddyn import feddyn
from koinon.strategy.fednova import fednova
from koinon.strategy.qfedavg import qfedavg
from koinon.strategy.recipes import diloco, fedadagrad, fedadam, fedavg, fedprox, fedyogi
from koinon.strategy.scaffold import scaffold
from koinon.strategy.strategy import Strategy
from koinon.update.adaptive import AdaptiveClip
from koinon.update.clip import Clip, ClipL1, ClipLayers
from koinon.update.codec import Float32
from koinon.update.correlated import CorrelatedNoise
from koinon.update.eden import Eden
from koinon.update.feedback import ErrorFeedback
from koinon.update.fitted import Fitted
from koinon.update.floats import BFloat16, Float16
from koinon.update.layers import Layers
from koinon.update.lazy import Lazy
from koinon.update.lowrank import LowRank
from koinon.update.momentum import Momentum
from koinon.update.noise import GaussianNoise, LaplaceNoise, Local, SkellamNoise
from koinon.update.quantize import Quantize
from koinon.update.rotate import Rotate
from koinon.update.sign import Sign
from koinon.update.sparsify import RandomMask, TopK, ternary
from koinon.update.weight import Weight
from koinon.update.zstd import Zstd
from koinon.view.loggers import MLflow, TensorBoard
from koinon.view.progress import Callback

__all__ = [
    "AUROC",
    "CAF",
    "DPSGD",
    "FABA",
    "FLAME",
    "IID",
    "R2",
    "Accuracy",
    "AdaptiveClip",
    "AdaptiveDefence",
    "AdaptiveRobustClipping",
    "AdmissionError",
    "Attacked",
    "BFloat16",
    "Bucketing",
    "Budget",
    "Bulyan",
    "Calibration",
    "Callback",
    "CenteredClipping",
    "ClientFailed",
    "Clip",
    "ClipL1",
    "ClipLayers",
    "Clock",
    "CorrelatedNoise",
    "DataSet",
    "Debugged",
    "Device",
    "Dirichlet",
    "DnC",
    "EarlyStopping",
    "Eden",
    "EncryptedSum",
    "EqualDirichlet",
    "ErrorFeedback",
    "Evaluation",
    "Everyone",
    "FLTrust",
    "Federation",
    "Fitted",
    "Fleet",
    "Float16",
    "Float32",
    "FoolsGold",
    "GaussianNoise",
    "GeometricMedian",
    "KoinonError",
    "Krum",
    "LaplaceNoise",
    "Layers",
    "Lazy",
    "Local",
    "LowRank",
    "MLflow",
    "MajorityVote",
    "Mean",
    "MeanAbsoluteError",
    "MeanAroundMedian",
    "MeanSquaredError",
    "Median",
    "MinimumDiameter",
    "Momentum",
    "MultiKrum",
    "Natural",
    "NearestNeighborMixing",
    "Network",
    "NormClipping",
    "OnRay",
    "Personal",
    "Poisson",
    "PolicyRefused",
    "Population",
    "ProtocolViolation",
    "QuantitySkew",
    "Quantize",
    "Quarantine",
    "RandomMask",
    "Rotate",
    "RoundRobin",
    "Run",
    "Samples",
    "SecureSum",
    "Shards",
    "Sign",
    "SignGuard",
    "SkellamNoise",
    "Strategy",
    "TensorBoard",
    "TopK",
    "TorchLearner",
    "Trace",
    "TrimmedMean",
    "Unavailable",
    "Uniform",
    "VerificationFailed",
    "Weight",
    "Weighted",
    "Yogi",
    "Zeno",
    "Zstd",
    "afl",
    "attack",
    "batch_norms",
    "calibrate",
    "data",
    "diloco",
    "ditto",
    "fedadagrad",
    "fedadam",
    "fedasync",
    "fedavg",
    "fedbuff",
    "feddyn",
    "fednova",
    "fedprox",
    "fedyogi",
    "privacy",
    "qfedavg",
    "scaffold",
    "secure",
    "simulate",
    "ternary",
]
