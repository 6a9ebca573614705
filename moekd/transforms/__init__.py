"""Transforms of training batches, one mechanism a file."""

from .base import TRANSFORMS, ReplayableTransform, Transform
from .draw_text import DrawText
from .image_augment import ImageAugment
from .shift import RandomShift, shift

__all__ = ["TRANSFORMS", "DrawText", "ImageAugment", "RandomShift", "ReplayableTransform", "Transform", "shift"]
