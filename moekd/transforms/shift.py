"""Random translation of images and maps.

Shapes: B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..model import Batch
from ..schedules import Progress
from .base import TRANSFORMS, Transform


def shift(maps: Tensor, offsets_B2: Tensor, limit: int) -> Tensor:
    """Move each map by whole pixels; the border is filled with the nearest pixel.

    Shape:
        maps: `[B, C, H, W]`; offsets_B2: integers in [-limit, limit], down and right.
    """
    padded = F.pad(maps, (limit,) * 4, mode="replicate")
    height, width = maps.shape[-2:]
    rows_BH = torch.arange(height, device=maps.device) + limit - offsets_B2[:, :1]
    cols_BW = torch.arange(width, device=maps.device) + limit - offsets_B2[:, 1:]
    batch = torch.arange(len(maps), device=maps.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows_BH[:, :, None], cols_BW[:, None, :]].permute(0, 3, 1, 2)


@TRANSFORMS.register("random_shift")
class RandomShift(Transform):
    """Move images (or spectrograms) by a random number of pixels.

    Args:
        fields: batch fields `[B, C, H, W]` to move; each draws its own offsets.
        pixels: largest offset in every direction.
    """

    def __init__(self, fields: Sequence[str], pixels: int = 2) -> None:
        super().__init__()
        self.fields, self.pixels = tuple(fields), pixels

    def forward(self, batch: Batch, progress: Progress) -> Batch:
        """Return the batch with moved fields."""
        moved = dict(batch)
        for field in self.fields:
            if field not in batch or batch[field].dim() != 4:
                found = tuple(batch[field].shape) if field in batch else "no such field"
                raise DataError(f"random_shift needs images [B, C, H, W] in field '{field}', found {found}")
            offsets = torch.randint(-self.pixels, self.pixels + 1, (len(batch[field]), 2), device=batch[field].device)
            moved[field] = shift(batch[field], offsets, self.pixels)
        return moved
