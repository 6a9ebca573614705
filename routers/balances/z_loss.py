"""Size of the scores.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from torch import Tensor

from ...schedules import Schedule
from ...signals import full_precision
from ..routing import Routing
from .base import BALANCES, Balance, mean_over_rows


def z_loss(logits_BT: Tensor, mask_B: Tensor | None = None) -> Tensor:
    """`mean_b (logsumexp_t score_bt)^2`.

    Args:
        logits_BT: scores `[B, T]`.
        mask_B: rows that count, default all.
    """
    return mean_over_rows(full_precision(logits_BT).logsumexp(dim=1).square()[:, None], mask_B)[0]


@BALANCES.register("z_loss")
class ZLoss(Balance):
    """Keeps scores small, so that the softmax stays well-conditioned (Zoph et al., "ST-MoE: Designing Stable and
    Transferable Sparse Expert Models", 2022, arXiv 2202.08906, equation 5).

    Args:
        weight: weight of the loss, or a schedule; the paper uses 0.001.
    """

    def __init__(self, weight: Schedule | float = 1e-3) -> None:
        super().__init__(weight)

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar."""
        return z_loss(routing.logits, routing.mask)
