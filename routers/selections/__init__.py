"""Selections: how scores become weights over the teachers, one mechanism a file."""

from .base import SELECTIONS, Selection
from .bias_balanced import BiasBalanced
from .dense import Dense
from .drop import Drop
from .expert_choice import ExpertChoice
from .hash import Hash, balanced_table
from .noisy_top_k import NoisyTopK
from .random import Random
from .single import Single
from .top_k import TopK

__all__ = [
    "SELECTIONS",
    "BiasBalanced",
    "Dense",
    "Drop",
    "ExpertChoice",
    "Hash",
    "NoisyTopK",
    "Random",
    "Selection",
    "Single",
    "TopK",
    "balanced_table",
]
