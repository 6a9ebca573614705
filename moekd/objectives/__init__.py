"""Losses, one mechanism a file; the maths is a pure function beside each module."""

from .base import OBJECTIVES, LossTerm, Objective, PairwiseObjective, reduce
from .cross_entropy import CrossEntropy, cross_entropy
from .fusion import FusedKDCE
from .kd import KD, kd_kl
from .kd_to_student import KDToStudent
from .mutual_kd import MutualKD
from .routed import RoutedKD, RoutedObjective, mixed_teacher
from .routing import RouteOnly

__all__ = [
    "KD",
    "OBJECTIVES",
    "CrossEntropy",
    "FusedKDCE",
    "KDToStudent",
    "LossTerm",
    "MutualKD",
    "Objective",
    "PairwiseObjective",
    "RouteOnly",
    "RoutedKD",
    "RoutedObjective",
    "cross_entropy",
    "kd_kl",
    "mixed_teacher",
    "reduce",
]
