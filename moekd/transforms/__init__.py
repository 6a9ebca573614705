"""Transforms of training batches, one mechanism a file."""

from .base import TRANSFORMS, Transform
from .shift import RandomShift, shift

__all__ = ["TRANSFORMS", "RandomShift", "Transform", "shift"]
