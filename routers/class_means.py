"""What each teacher says about a class on average.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..distributed import sum_over_processes
from ..errors import DataError
from ..model import Batch
from ..signals import PoolSignals, full_precision


class ClassMeans(nn.Module):
    """Mean of every teacher's predicted probabilities over the rows of each class.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
    """

    means: Tensor

    def __init__(self, num_classes: int, num_teachers: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.full((num_teachers, num_classes, num_classes), torch.nan))

    def forward(self, classes_B: Tensor) -> Tensor:
        """Return the means of the rows' classes, `[B, T, C]`."""
        return self.means[:, classes_B].transpose(0, 1)

    @property
    def known(self) -> bool:
        """Tell whether they were measured; reads the device."""
        return not bool(self.means.isnan().any())

    @torch.no_grad()
    def measure(self, teachers: Callable[[Batch], PoolSignals], batches: Iterable[Batch]) -> None:
        """Measure them on labelled rows, each process on its own batches.

        A class without rows takes the mean over all rows.

        Args:
            teachers: signals of the teachers for a batch.
            batches: rows without a label (negative, or `labelled` False) do not count.

        Raises:
            DataError: no row has a label.
        """
        sums = torch.zeros_like(self.means, dtype=torch.float64)
        rows = torch.zeros_like(sums[0, :, 0])
        for batch in batches:
            known = batch["label"] >= 0
            if "labelled" in batch:
                known = known & batch["labelled"]
            classes = batch["label"][known]
            probs_TBC = full_precision(teachers(batch).logits[known]).softmax(dim=2).to(sums).transpose(0, 1)
            sums.index_add_(1, classes, probs_TBC)
            rows += torch.bincount(classes, minlength=len(rows))
        sum_over_processes(sums)
        sum_over_processes(rows)
        if not rows.sum() > 0:
            raise DataError("the teachers' class means can't be measured: no row has a label")
        overall = sums.sum(dim=1, keepdim=True) / rows.sum()
        means = torch.where(rows[:, None] > 0, sums / rows.clamp_min(1)[:, None], overall)
        self.means.copy_(means)
