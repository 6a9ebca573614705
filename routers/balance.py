"""Balance losses: what keeps a router from sending everything to one teacher.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..distributed import batch_mean
from ..registry import Registry
from ..schedules import Progress, Schedule
from ..signals import full_precision


class Balance(nn.Module):
    """An auxiliary loss on the router's probabilities, with a weight that may follow a schedule."""

    def __init__(self, weight: Schedule | float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def weight_at(self, progress: Progress) -> float:
        """Return the weight at a moment of the stage."""
        return self.weight(progress) if isinstance(self.weight, Schedule) else float(self.weight)

    def forward(self, probs_BT: Tensor, logits_BT: Tensor, chosen_Bk: Tensor | None) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError


BALANCES: Registry[Balance] = Registry("balance loss", "balances", base=Balance)


def kl_to_uniform(probs_BT: Tensor, normalize_by_experts: bool = False) -> Tensor:
    """`KL(U || mean_b p_b)`: how far the mean routing distribution is from uniform.

    Args:
        probs_BT: routing probabilities `[B, T]`, rows sum to 1.
        normalize_by_experts: divide by T, as the released MST-Distill code does (`batchmean` over a vector of length
            T).
    """
    mean_T = batch_mean(full_precision(probs_BT))
    experts = mean_T.shape[0]
    log_mean_T = mean_T.clamp_min(torch.finfo(mean_T.dtype).tiny).log()
    divergence = -(log_mean_T.mean() + math.log(experts))
    return divergence / experts if normalize_by_experts else divergence


def coefficient_of_variation(probs_BT: Tensor) -> Tensor:
    """`std / mean` (unbiased, not squared) of the load of the teachers; 0 for one teacher.

    Args:
        probs_BT: routing probabilities `[B, T]`.
    """
    mean_T = batch_mean(full_precision(probs_BT))
    if mean_T.shape[0] == 1:
        return mean_T.sum() * 0.0
    return mean_T.std() / mean_T.mean().clamp_min(torch.finfo(mean_T.dtype).tiny)


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

    def forward(self, probs_BT: Tensor, logits_BT: Tensor, chosen_Bk: Tensor | None) -> Tensor:
        """Return the loss, a scalar."""
        return kl_to_uniform(probs_BT, self.normalize_by_experts)


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
