"""A warning when one teacher takes nearly all rows for long.

Shapes: T teacher variants.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..distributed import sum_over_processes

logger = logging.getLogger(__name__)


class CollapseAlarm(nn.Module):
    """Counts the optimizer steps in a row in which the same teacher took more than a share of the rows.

    Counts stay on the device; only `warn` reads them. They are no part of checkpoints: a resumed run counts anew.

    Args:
        share: of the rows, over all processes, above which a step counts.
        steps: counted steps in a row after which `warn` speaks.
    """

    streak: Tensor
    teacher: Tensor
    rows: Tensor | None

    def __init__(self, share: float = 0.95, steps: int = 100) -> None:
        super().__init__()
        self.share, self.steps = share, steps
        self.register_buffer("streak", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("teacher", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("rows", None, persistent=False)
        self._warned = False

    def add(self, rows_T: Tensor) -> None:
        """Add how many rows each teacher took in a batch, `[T]`."""
        rows_T = rows_T.detach()
        self.rows = rows_T.clone() if self.rows is None else self.rows + rows_T

    @torch.no_grad()
    def after_step(self) -> None:
        """End a step; every process has to call this."""
        if self.rows is None:
            return
        rows_T, self.rows = sum_over_processes(self.rows), None
        if rows_T.shape[0] == 1:
            return
        most, teacher = rows_T.max(dim=0)
        collapsed = most > self.share * rows_T.sum()
        again = collapsed & ((teacher == self.teacher) | (self.streak == 0))
        self.streak.copy_(torch.where(again, self.streak + 1, collapsed.to(self.streak.dtype)))
        self.teacher.copy_(teacher)

    def warn(self, names: Sequence[str]) -> bool:
        """Log a warning if the routing has collapsed, once a collapse; tell whether it has. Reads the device."""
        streak = int(self.streak)
        collapsed = streak >= self.steps
        if collapsed and not self._warned:
            logger.warning(
                "routing has collapsed: teacher '%s' took more than %.0f %% of the rows in each of the last %d steps; "
                "add or strengthen a balance loss, or use another signal or selection",
                names[int(self.teacher)],
                100 * self.share,
                streak,
            )
        self._warned = collapsed
        return collapsed
