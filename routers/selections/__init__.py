"""Selections: how scores become weights over the teachers, one mechanism a file."""

from .base import SELECTIONS, Selection
from .dense import Dense
from .drop import Drop
from .hash import Hash, balanced_table
from .random import Random
from .single import Single
from .top_k import TopK

__all__ = ["SELECTIONS", "Dense", "Drop", "Hash", "Random", "Selection", "Single", "TopK", "balanced_table"]
