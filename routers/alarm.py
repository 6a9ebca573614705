"""A warning when one teacher takes nearly all rows for long.

Shapes: T teacher variants, S steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..distributed import sum_over_processes

logger = logging.getLogger(__name__)
#: Steps that are put aside before they are counted together.
ASIDE = 32


class CollapseAlarm(nn.Module):
    """Counts the optimizer steps in a row in which the same teacher took more than a share of the rows.

    What a step says is put aside and counted now and then, on the device; only `warn` reads it. Counts are no part of
    checkpoints: a resumed run counts anew.

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
        self._aside: list[Tensor] = []
        self._warned = False

    def add(self, rows_T: Tensor) -> None:
        """Add how many rows each teacher took in a batch, `[T]`."""
        rows_T = rows_T.detach()
        self.rows = rows_T if self.rows is None else self.rows + rows_T

    def after_step(self) -> None:
        """End a step; every process has to call this."""
        if self.rows is None:
            return
        if self.rows.shape[0] > 1:
            self._aside.append(self.rows)
        self.rows = None
        if len(self._aside) == ASIDE:
            self.count()

    @torch.no_grad()
    def count(self) -> None:
        """Count the steps that were put aside; every process has to call this after the same step."""
        if not self._aside:
            return
        rows_ST, self._aside = sum_over_processes(torch.stack(self._aside)), []
        most_S, teacher_S = rows_ST.max(dim=1)
        last = teacher_S[-1]
        same_S = (most_S > self.share * rows_ST.sum(dim=1)) & (teacher_S == last)
        streak = same_S.flip(0).long().cumprod(dim=0).sum()
        goes_on = same_S.all() & (self.teacher == last)
        self.streak.copy_(streak + torch.where(goes_on, self.streak, 0))
        self.teacher.copy_(last)

    def warn(self, names: Sequence[str]) -> bool:
        """Log a warning if the routing has collapsed, once a collapse; tell whether it has. Reads the device.

        Every process has to call this after the same step.
        """
        self.count()
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
