"""How decided the router is.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...schedules import Schedule
from ...signals import full_precision
from ..routing import Routing
from .base import BALANCES, Balance, mean_over_rows


def mean_entropy(probs_BT: Tensor, mask_B: Tensor | None = None) -> Tensor:
    """`mean_b H(p_b)` in nats, in [0, ln T].

    Args:
        probs_BT: routing probabilities `[B, T]`, rows sum to 1.
        mask_B: rows that count, default all.
    """
    probs_BT = full_precision(probs_BT)
    logs_BT = probs_BT.clamp_min(torch.finfo(probs_BT.dtype).tiny).log()
    return mean_over_rows(-(probs_BT * logs_BT).sum(dim=1, keepdim=True), mask_B)[0]


@BALANCES.register("entropy")
class Entropy(Balance):
    """Mean entropy of the rows' routing probabilities; unlike the other balance losses it looks at each row alone.

    A positive weight makes every decision sharper, a negative one is a bonus for spreading it.

    Args:
        weight: weight of the loss, of either sign, or a schedule.
    """

    def __init__(self, weight: Schedule | float = 0.01) -> None:
        super().__init__(weight)

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar."""
        return mean_entropy(routing.probs, routing.mask)
