"""Losses, one mechanism a file; the maths is a pure function beside each module."""

from .attention_transfer import AttentionTransfer, attention_loss
from .base import OBJECTIVES, LossTerm, Objective, PairwiseObjective, reduce
from .c2kd import BidirectionalProxies, non_target_kl
from .cka import CKA, linear_cka
from .crd import ContrastiveDistillation, contrastive_loss
from .cross_entropy import CrossEntropy, cross_entropy
from .dist import DIST, dist_loss
from .dkd import DKD, decoupled_kd
from .dml import PeerLearning
from .fitnets import FitNets, hint_loss
from .fusion import FusedKDCE
from .inputs import TapPair
from .kd import KD, kd_kl, standardise
from .kd_to_student import KDToStudent
from .kendall import kendall_tau_b
from .mlld import MultiLevelLogits, multi_level_loss
from .mutual_kd import MutualKD
from .nkd import NKD, normalised_kd
from .ofa import OneForAll, adaptive_target_loss
from .regressors import make_regressor
from .rkd import RKD, rkd_angle, rkd_distance
from .routed import RoutedKD, RoutedObjective, mixed_teacher
from .routing import RouteOnly
from .similarity_preserving import SimilarityPreserving, similarity_loss

__all__ = [
    "CKA",
    "DIST",
    "DKD",
    "KD",
    "NKD",
    "OBJECTIVES",
    "RKD",
    "AttentionTransfer",
    "BidirectionalProxies",
    "ContrastiveDistillation",
    "CrossEntropy",
    "FitNets",
    "FusedKDCE",
    "KDToStudent",
    "LossTerm",
    "MultiLevelLogits",
    "MutualKD",
    "Objective",
    "OneForAll",
    "PairwiseObjective",
    "PeerLearning",
    "RouteOnly",
    "RoutedKD",
    "RoutedObjective",
    "SimilarityPreserving",
    "TapPair",
    "adaptive_target_loss",
    "attention_loss",
    "contrastive_loss",
    "cross_entropy",
    "decoupled_kd",
    "dist_loss",
    "hint_loss",
    "kd_kl",
    "kendall_tau_b",
    "linear_cka",
    "make_regressor",
    "mixed_teacher",
    "multi_level_loss",
    "non_target_kl",
    "normalised_kd",
    "reduce",
    "rkd_angle",
    "rkd_distance",
    "similarity_loss",
    "standardise",
]
