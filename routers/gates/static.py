"""Learned scores that are the same for every instance.

Shapes: R rows (instances, tokens or pixels), T teacher variants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...registry import Injected
from ..positions import Granularity, Rows, count
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("static")
class StaticGate(Gate):
    """One learned score a teacher, the same for all instances: `scores_b = s`, s = 0 at the start.

    It can learn which teachers are good, and not for which instance. So it is the control that tells what routing by
    instance is worth: a gate that reads something has to beat it.

    Args:
        num_teachers: number T of teacher variants.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
    """

    def __init__(
        self, num_teachers: Injected[int], granularity: Granularity = "instance", mask_field: str | None = None
    ) -> None:
        super().__init__()
        self.rows = Rows(granularity, mask_field)
        self.scores = nn.Parameter(torch.zeros(num_teachers))

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[R, T]`, rows are equal."""
        rows = len(step.batch["id"]) * count(self.rows.positions(step, "the gate 'static'"))
        return self.scores.expand(rows, -1)
