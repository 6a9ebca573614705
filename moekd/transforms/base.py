"""What may be done to a training batch before the models see it."""

from __future__ import annotations

from torch import nn

from ..model import Batch
from ..registry import Registry
from ..schedules import Progress


class Transform(nn.Module):
    """Maps a batch to a batch; teachers and student see the same result. Runs in training only."""

    def forward(self, batch: Batch, progress: Progress) -> Batch:
        """Return the transformed batch."""
        raise NotImplementedError


TRANSFORMS: Registry[Transform] = Registry("transform", "transforms", base=Transform)
