"""Learned scores that are the same for every instance.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...registry import Injected
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
    """

    def __init__(self, num_teachers: Injected[int]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_teachers))

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[B, T]`, rows are equal."""
        return self.scores.expand(len(step.batch["id"]), -1)
