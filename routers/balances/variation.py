"""Spread of the teachers' load.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...distributed import batch_mean
from ...schedules import Schedule
from ...signals import full_precision
from .base import BALANCES, Balance


def coefficient_of_variation(probs_BT: Tensor) -> Tensor:
    """`std / mean` (unbiased, not squared) of the load of the teachers; 0 for one teacher.

    Args:
        probs_BT: routing probabilities `[B, T]`.
    """
    mean_T = batch_mean(full_precision(probs_BT))
    if mean_T.shape[0] == 1:
        return mean_T.sum() * 0.0
    return mean_T.std() / mean_T.mean().clamp_min(torch.finfo(mean_T.dtype).tiny)


@BALANCES.register("cv")
class CoefficientOfVariation(Balance):
    """Coefficient of variation of the teachers' load, not squared (the CV mode of MST-Distill, arXiv 2507.07015).

    Args:
        weight: weight of the loss, or a schedule.
    """

    def __init__(self, weight: Schedule | float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, probs_BT: Tensor, logits_BT: Tensor, chosen_Bk: Tensor | None) -> Tensor:
        """Return the loss, a scalar."""
        return coefficient_of_variation(probs_BT)
