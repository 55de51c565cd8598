"""Clients that lie: to test a configuration before somebody else does.

kn.simulate(federation, population, engine=kn.Attacked(kn.attack.ALIE(), liars=4))
"""

from koinon.attack.attack import Attack, Known
from koinon.attack.data import Backdoor, LabelFlip, SemanticBackdoor
from koinon.attack.omniscient import ALIE, IPM, Adaptive, LineSearch, Mimic, MinMax, MinSum
from koinon.attack.simple import FreeRider, Gaussian, NotFinite, Replacement, Scaled, SignFlip, Sybils

__all__ = [
    "ALIE",
    "IPM",
    "Adaptive",
    "Attack",
    "Backdoor",
    "FreeRider",
    "Gaussian",
    "Known",
    "LabelFlip",
    "LineSearch",
    "Mimic",
    "MinMax",
    "MinSum",
    "NotFinite",
    "Replacement",
    "Scaled",
    "SemanticBackdoor",
    "SignFlip",
    "Sybils",
]
