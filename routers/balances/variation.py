"""Spread of the teachers' load.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...schedules import Schedule
from ..routing import Routing
from .base import BALANCES, Balance, mean_over_rows
from .importance import cv_squared


def coefficient_of_variation(probs_BT: Tensor, mask_B: Tensor | None = None, unbiased: bool = True) -> Tensor:
    """`std / mean` (not squared) of the load of the teachers; 0 for one teacher.

    Args:
        probs_BT: routing probabilities `[B, T]`.
        mask_B: rows that count, default all.
        unbiased: divide the variance by T - 1 instead of T.
    """
    mean_T = mean_over_rows(probs_BT, mask_B)
    if mean_T.shape[0] == 1:
        return mean_T.sum() * 0.0
    return mean_T.std(correction=int(unbiased)) / mean_T.mean().clamp_min(torch.finfo(mean_T.dtype).tiny)


@BALANCES.register("cv")
class CoefficientOfVariation(Balance):
    """Coefficient of variation of the teachers' mean probabilities, by default not squared (the CV mode of MST-Distill,
    arXiv 2507.07015).

    Args:
        weight: weight of the loss, or a schedule.
        squared: square it, as the sparsely-gated mixture of experts (arXiv 1701.06538) does with weights.
        unbiased: variance with T - 1 or with T.
    """

    def __init__(self, weight: Schedule | float = 1.0, squared: bool = False, unbiased: bool = True) -> None:
        super().__init__(weight)
        self.squared, self.unbiased = squared, unbiased

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar."""
        if self.squared:
            return cv_squared(routing.probs, self.unbiased, routing.mask)
        return coefficient_of_variation(routing.probs, routing.mask, self.unbiased)
