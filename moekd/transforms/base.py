"""What may be done to a training batch before the models see it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..model import Batch
from ..registry import Registry
from ..schedules import Progress
from .draws import hashes


class Transform(nn.Module):
    """Maps a batch to a batch; teachers and student see the same result. Runs in training only."""

    def forward(self, batch: Batch, progress: Progress) -> Batch:
        """Return the transformed batch."""
        raise NotImplementedError


class ReplayableTransform(Transform):
    """A transform that can be made again: what becomes of a sample depends on `(seed, sample id, view)` alone.

    The view is a number. Without `views` it is the epoch, so that every epoch shows something new; with `views: K` it
    is one of K, drawn from (seed, sample id, epoch), so that what teachers say can be stored for each (sample, view).
    The batch order, the number of processes and the other rows of a batch play no part. With `views`, the batch gets
    the int64 field `view` `[B]`.

    Args:
        views: K, the number of different results for a sample; None is a new one in every epoch.
        seed: seed of the draws; it belongs to the transform, not to the run, so that stored signals fit many runs.

    Raises:
        DataError: fewer than 1 view, or a negative seed.
    """

    def __init__(self, views: int | None, seed: int) -> None:
        super().__init__()
        if views is not None and views < 1:
            raise DataError(f"views: expected at least 1, or nothing for a new view in every epoch; found {views}")
        if not 0 <= seed < 2**62:
            raise DataError(f"seed: expected a number from 0 to 2**62, found {seed}")
        self.views, self.seed = views, seed

    def view_of(self, ids: Tensor, epoch: int) -> Tensor:
        """Return the views int64 `[B]` that the samples `ids` `[B]` show in an epoch."""
        if self.views is None:
            return torch.full_like(ids, epoch)
        return torch.remainder(hashes(self.seed, ids, torch.full_like(ids, epoch)), self.views)

    def replay(self, batch: Batch, views: Tensor) -> Batch:
        """Return the batch as it looks in the views int64 `[B]`; `batch` itself stays as it is."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Return what the result for a (sample, view) depends on, JSON-able, for fingerprints of stored signals."""
        raise NotImplementedError

    def forward(self, batch: Batch, progress: Progress) -> Batch:
        """Return the batch in the views of this epoch.

        Raises:
            DataError: another transform of the stage chose other views.
        """
        views = self.view_of(batch["id"], progress.epoch)
        seen = self.replay(batch, views)
        if self.views is None:
            return seen
        if "view" in batch and not torch.equal(batch["view"], views):
            raise DataError("the transforms of a stage show different views; give all of them the same views and seed")
        return {**seen, "view": views}


TRANSFORMS: Registry[Transform] = Registry("transform", "transforms", base=Transform)
