"""Losses, one mechanism a file; the maths is a pure function beside each module."""

from .affinity import AffinityMimicking, affinity_mimicking
from .attention_transfer import AttentionTransfer, attention_loss
from .augmented_contrastive import AugmentedContrastive
from .balanced import Balanced, gradnorm_loss, uncertainty_weighted
from .base import OBJECTIVES, LossTerm, Objective, PairwiseObjective, reduce
from .by_labelling import ByLabelling
from .c2kd import BidirectionalProxies, non_target_kl
from .cka import CKA, linear_cka
from .contrastive import Contrastive, sigmoid_contrastive, softmax_contrastive
from .contrastive_kd import ContrastiveKD, contrastive_kd, soft_targets
from .crd import ContrastiveDistillation, contrastive_loss
from .cross_entropy import CrossEntropy, cross_entropy
from .dist import DIST, dist_loss
from .dkd import DKD, decoupled_kd
from .dml import PeerLearning
from .embedding_contrastive import EmbeddingContrastive, embedding_contrastive
from .embedding_kd import EmbeddingKD, embedding_distance
from .embedding_pair import EmbeddingObjective
from .feature_queue import FeatureQueue
from .fitnets import FitNets, hint_loss
from .fusion import FusedKDCE
from .gradient_kd import GradientKD, contrastive_gradients, gradient_kd
from .hard_contrastive import HardContrastive, hard_negative_infonce
from .hard_negatives import hard_negatives, sampled_negatives, without_likely_positives
from .hard_pair_kd import HardPairKD, difficulty_weights
from .hard_pairs import HardPairObjective
from .inputs import TapPair
from .interactive_contrastive import InteractiveContrastive, interactive_contrastive
from .kd import KD, kd_kl, standardise
from .kd_to_student import KDToStudent
from .kendall import kendall_tau_b
from .masked_student import MaskedStudent, mask_patches
from .matching import Matching
from .mgdfr import DecisiveFeatures, LogitAgreement, freeze_channels, least_decisive, permute_channels
from .mlld import MultiLevelLogits, multi_level_loss
from .momentum_contrastive import MomentumContrastive, mix_targets, soft_cross_entropy
from .mutual_kd import MutualKD
from .nkd import NKD, normalised_kd
from .ofa import OneForAll, adaptive_target_loss
from .pair_scores import PairScorer
from .partial_ranking import PartialRanking, partial_ranking_loss
from .prototype_ce import PrototypeCE, prototype_ce, prototype_scores
from .ranking import Ranking, ranking
from .regressors import make_regressor
from .relational_kl import RelationalKL, relational_kl
from .review_kd import ReviewKD, hierarchical_context_loss
from .rkd import RKD, rkd_angle, rkd_distance
from .routed import RoutedKD, RoutedObjective, mixed_teacher
from .routing import RouteOnly
from .self_kd import SelfKD, softened_cross_entropy
from .similarity_pair import SimilarityObjective
from .similarity_preserving import SimilarityPreserving, similarity_loss
from .soft_bce import SoftBCE, soft_bce
from .together import Together
from .token_kd import TokenKD
from .topk_kd import TopKKD, topk_kd_loss

__all__ = [
    "CKA",
    "DIST",
    "DKD",
    "KD",
    "NKD",
    "OBJECTIVES",
    "RKD",
    "AffinityMimicking",
    "AttentionTransfer",
    "AugmentedContrastive",
    "Balanced",
    "BidirectionalProxies",
    "ByLabelling",
    "Contrastive",
    "ContrastiveDistillation",
    "ContrastiveKD",
    "CrossEntropy",
    "DecisiveFeatures",
    "EmbeddingContrastive",
    "EmbeddingKD",
    "EmbeddingObjective",
    "FeatureQueue",
    "FitNets",
    "FusedKDCE",
    "GradientKD",
    "HardContrastive",
    "HardPairKD",
    "HardPairObjective",
    "InteractiveContrastive",
    "KDToStudent",
    "LogitAgreement",
    "LossTerm",
    "MaskedStudent",
    "Matching",
    "MomentumContrastive",
    "MultiLevelLogits",
    "MutualKD",
    "Objective",
    "OneForAll",
    "PairScorer",
    "PairwiseObjective",
    "PartialRanking",
    "PeerLearning",
    "PrototypeCE",
    "Ranking",
    "RelationalKL",
    "ReviewKD",
    "RouteOnly",
    "RoutedKD",
    "RoutedObjective",
    "SelfKD",
    "SimilarityObjective",
    "SimilarityPreserving",
    "SoftBCE",
    "TapPair",
    "Together",
    "TokenKD",
    "TopKKD",
    "adaptive_target_loss",
    "affinity_mimicking",
    "attention_loss",
    "contrastive_gradients",
    "contrastive_kd",
    "contrastive_loss",
    "cross_entropy",
    "decoupled_kd",
    "difficulty_weights",
    "dist_loss",
    "embedding_contrastive",
    "embedding_distance",
    "freeze_channels",
    "gradient_kd",
    "gradnorm_loss",
    "hard_negative_infonce",
    "hard_negatives",
    "hierarchical_context_loss",
    "hint_loss",
    "interactive_contrastive",
    "kd_kl",
    "kendall_tau_b",
    "least_decisive",
    "linear_cka",
    "make_regressor",
    "mask_patches",
    "mix_targets",
    "mixed_teacher",
    "multi_level_loss",
    "non_target_kl",
    "normalised_kd",
    "partial_ranking_loss",
    "permute_channels",
    "prototype_ce",
    "prototype_scores",
    "ranking",
    "reduce",
    "relational_kl",
    "rkd_angle",
    "rkd_distance",
    "sampled_negatives",
    "sigmoid_contrastive",
    "similarity_loss",
    "soft_bce",
    "soft_cross_entropy",
    "soft_targets",
    "softened_cross_entropy",
    "softmax_contrastive",
    "standardise",
    "topk_kd_loss",
    "uncertainty_weighted",
    "without_likely_positives",
]
