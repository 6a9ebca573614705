"""Selections: how scores become weights over the teachers, one mechanism a file."""

from .base import SELECTIONS, Selection
from .dense import Dense
from .top_k import TopK

__all__ = ["SELECTIONS", "Dense", "Selection", "TopK"]
