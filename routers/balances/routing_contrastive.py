"""Prototypes near the rows that chose them, and away from those of others.

Shapes: B batch, T teacher variants, k chosen ones, D width of the gate's input.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from ...errors import ConfigError, ModelError
from ...schedules import Schedule
from ...signals import full_precision
from ..routing import Routing
from .base import BALANCES, Balance, mean_over_rows


def routing_contrastive(
    x_BD: Tensor,
    prototypes_TD: Tensor,
    chosen_Bk: Tensor,
    temperature: float = 0.07,
    mask_B: Tensor | None = None,
) -> Tensor:
    """Cross-entropy that finds for each prototype the mean of its own rows among the means of all.

    `mean over active i of -log softmax_j(cos(prototype_i, mean_j) / temperature)[i]`, where `mean_j` is the mean of the
    rows with j among their choices, and prototypes without rows take no part; 0 with fewer than two active ones.

    Args:
        x_BD: what the gate compared with the prototypes, `[B, D]`.
        prototypes_TD: one a teacher, `[T, D]`.
        chosen_Bk: chosen teachers `[B, k]`, -1 for an empty place.
        temperature: above 0.
        mask_B: rows that count, default all.
    """
    x_BD, prototypes_TD = full_precision(x_BD), full_precision(prototypes_TD)
    teachers, width = prototypes_TD.shape
    filled = (chosen_Bk >= 0).to(x_BD)
    picked_BT = x_BD.new_zeros(x_BD.shape[0], teachers).scatter_add(1, chosen_Bk.clamp_min(0), filled)
    share_T = mean_over_rows(picked_BT, mask_B)
    sums_TD = mean_over_rows((picked_BT[:, :, None] * x_BD[:, None, :]).flatten(1), mask_B).view(teachers, width)
    active_T = share_T > 0
    means_TD = sums_TD / share_T.where(active_T, 1.0)[:, None]
    cosines_TT = F.normalize(prototypes_TD, dim=1) @ F.normalize(means_TD, dim=1).T / temperature
    log_probs_TT = cosines_TT.masked_fill(~active_T, torch.finfo(cosines_TT.dtype).min / 2).log_softmax(dim=1)
    own_T = log_probs_TT.diagonal().where(active_T, 0.0)
    count = active_T.sum()
    return -(own_T.sum() / count.clamp_min(1)).where(count > 1, 0.0)


@BALANCES.register("routing_contrastive")
class RoutingContrastive(Balance):
    """Routing contrastive loss of ProMoE (Wei et al., ICLR 2026, arXiv 2510.24711), for the gate `prototype`.

    Args:
        weight: weight of the loss, or a schedule.
        temperature: of the softmax over cosines, above 0.
    """

    def __init__(self, weight: Schedule | float = 1.0, temperature: Annotated[float, Gt(0)] = 0.07) -> None:
        super().__init__(weight)
        if not temperature > 0:
            raise ConfigError(f"temperature must be above 0, found {temperature}")
        self.temperature = temperature

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            ModelError: the gate has no prototypes, or the selection chooses nobody in particular.
        """
        details = routing.details
        if "prototypes" not in details or routing.chosen is None:
            raise ModelError(
                "the balance loss 'routing_contrastive' needs the gate 'prototype' and a selection that chooses, such "
                "as 'top_k'"
            )
        return routing_contrastive(
            details["input"], details["prototypes"], routing.chosen, self.temperature, routing.mask
        )
