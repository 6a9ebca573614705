"""Distance of the mean routing from uniform.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...schedules import Schedule
from ..routing import Routing
from .base import BALANCES, Balance, mean_over_rows


def kl_to_uniform(probs_BT: Tensor, normalize_by_experts: bool = False, mask_B: Tensor | None = None) -> Tensor:
    """`KL(U || mean_b p_b)`: how far the mean routing distribution is from uniform.

    Args:
        probs_BT: routing probabilities `[B, T]`, rows sum to 1.
        normalize_by_experts: divide by T, as the released MST-Distill code does (`batchmean` over a vector of length
            T).
        mask_B: rows that count, default all.
    """
    mean_T = mean_over_rows(probs_BT, mask_B)
    experts = mean_T.shape[0]
    log_mean_T = mean_T.clamp_min(torch.finfo(mean_T.dtype).tiny).log()
    divergence = -(log_mean_T.mean() + math.log(experts))
    return divergence / experts if normalize_by_experts else divergence


@BALANCES.register("kl_to_uniform")
class KLToUniform(Balance):
    """KL divergence from the uniform distribution to the mean routing distribution (MST-Distill, arXiv 2507.07015).

    Args:
        weight: weight of the loss, or a schedule.
        normalize_by_experts: divide by the number of teachers, as the released code does; the paper does not.
    """

    def __init__(self, weight: Schedule | float = 1.0, normalize_by_experts: bool = False) -> None:
        super().__init__(weight)
        self.normalize_by_experts = normalize_by_experts

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar."""
        return kl_to_uniform(routing.probs, self.normalize_by_experts, routing.mask)
