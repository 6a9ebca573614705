"""Small networks for students and teachers of the benchmarks, one family a file. They know nothing of distillation."""

from .base import NETWORKS

__all__ = ["NETWORKS"]
