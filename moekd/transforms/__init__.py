"""Transforms of training batches, one mechanism a file."""

from .base import TRANSFORMS, ReplayableTransform, Transform
from .image_augment import ImageAugment
from .shift import RandomShift, shift

__all__ = ["TRANSFORMS", "ImageAugment", "RandomShift", "ReplayableTransform", "Transform", "shift"]
