"""Spread of the teachers' weights and loads, squared.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ModelError
from ...schedules import Schedule
from ..routing import Routing
from .base import BALANCES, Balance, mean_over_rows


def cv_squared(values_BT: Tensor, unbiased: bool = True, mask_B: Tensor | None = None) -> Tensor:
    """`var / mean^2` over the teachers of the sums over the batch; 0 for one teacher.

    Args:
        values_BT: what is summed over the rows, `[B, T]`.
        unbiased: divide the variance by T - 1 instead of T.
        mask_B: rows that count, default all.
    """
    mean_T = mean_over_rows(values_BT, mask_B)
    if mean_T.shape[0] == 1:
        return mean_T.sum() * 0.0
    return mean_T.var(correction=int(unbiased)) / mean_T.mean().square().clamp_min(torch.finfo(mean_T.dtype).tiny)


@BALANCES.register("importance")
class Importance(Balance):
    """Squared coefficient of variation of the teachers' summed weights (Shazeer et al., arXiv 1701.06538, equation 7).

    Args:
        weight: weight of the loss, or a schedule; the paper's language models use 0.1.
        unbiased: variance with T - 1 (PyTorch ports) or with T (V-MoE).
    """

    def __init__(self, weight: Schedule | float = 0.1, unbiased: bool = True) -> None:
        super().__init__(weight)
        self.unbiased = unbiased

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar."""
        return cv_squared(routing.weights, self.unbiased, routing.mask)


@BALANCES.register("load")
class Load(Balance):
    """Squared coefficient of variation of the teachers' expected loads (Shazeer et al., arXiv 1701.06538, equation 11).

    The load is the smooth one of the selection `noisy_top_k`; with k = T or without noise, where that is not defined,
    it is the count of positive weights, which has no gradient.

    Args:
        weight: weight of the loss, or a schedule; the paper's language models use 0.1.
        unbiased: variance with T - 1 (PyTorch ports) or with T (V-MoE).
    """

    def __init__(self, weight: Schedule | float = 0.1, unbiased: bool = True) -> None:
        super().__init__(weight)
        self.unbiased = unbiased

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            ModelError: the selection has no smooth load.
        """
        if "load" not in routing.details:
            raise ModelError(
                "the balance loss 'load' needs the selection 'noisy_top_k'; for other "
                "selections use 'switch' or 'importance'"
            )
        return cv_squared(routing.details["load"], self.unbiased, routing.mask)
