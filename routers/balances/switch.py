"""Load balance of hard choices.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import ModelError
from ...schedules import Schedule
from ..routing import Routing
from .base import BALANCES, Balance, mean_over_rows

Choices = Literal["first", "all"]


def switch_balance(
    probs_BT: Tensor,
    chosen_Bk: Tensor,
    choices: Choices = "all",
    normalise_by_k: bool = False,
    mask_B: Tensor | None = None,
) -> Tensor:
    """`T * sum_t f_t P_t`: f_t is the share of rows that chose teacher t, P_t its mean probability.

    The gradient goes through P alone.

    Args:
        probs_BT: routing probabilities `[B, T]`, rows sum to 1.
        chosen_Bk: chosen teachers `[B, k]`, best first, -1 for an empty place.
        choices: `first` counts the best choice of a row (Switch, GShard), `all` counts all k (Mixtral).
        normalise_by_k: divide f by the number of counted choices, so that the minimum is 1 and not k.
        mask_B: rows that count, default all.
    """
    counted = chosen_Bk[:, :1] if choices == "first" else chosen_Bk
    filled = (counted >= 0).to(probs_BT)
    picked_BT = torch.zeros_like(probs_BT.detach()).scatter_add(1, counted.clamp_min(0), filled)
    share_T = mean_over_rows(picked_BT, mask_B)
    if normalise_by_k:
        share_T = share_T / counted.shape[1]
    return probs_BT.shape[1] * (share_T * mean_over_rows(probs_BT, mask_B)).sum()


@BALANCES.register("switch")
class SwitchBalance(Balance):
    """`T * sum_t f_t P_t`, smallest when both loads and probabilities are even.

    Fedus et al., "Switch Transformers", JMLR 2022, arXiv 2101.03961 (equation 4). For k = 1 the minimum is 1. For more
    choices, `choices: all` without `normalise_by_k` is the loss of Mixtral's released implementation (minimum k),
    `choices: first` that of GShard (arXiv 2006.16668).

    Args:
        weight: weight of the loss, or a schedule; the paper uses 0.01.
        choices: `first` or `all` choices of a row count.
        normalise_by_k: divide the shares by the number of counted choices.
        per_group: balance the rows of each modality or task on their own, over the teachers that it may use, and add up
            (MoIIE, arXiv 2508.09779); for the gates `modality` and `task`.
    """

    def __init__(
        self,
        weight: Schedule | float = 0.01,
        choices: Choices = "all",
        normalise_by_k: bool = False,
        per_group: bool = False,
    ) -> None:
        super().__init__(weight)
        self.per_group = per_group
        self.choices: Choices = choices
        self.normalise_by_k = normalise_by_k

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            ModelError: the selection chooses nobody in particular, or the gate tells no groups apart.
        """
        if routing.chosen is None:
            raise ModelError(
                "the balance loss 'switch' counts choices, but this selection uses all teachers; use 'kl_to_uniform', "
                "or a selection such as 'top_k'"
            )
        options = (self.choices, self.normalise_by_k)
        if not self.per_group:
            return switch_balance(routing.probs, routing.chosen, *options, routing.mask)
        if "groups" not in routing.details:
            raise ModelError("the balance loss 'switch' with per_group needs the gate 'modality' or 'task'")
        total = routing.probs.new_zeros(())
        for group, admitted_T in enumerate(routing.details["admitted"]):
            rows_B = routing.details["groups"] == group
            rows_B = rows_B if routing.mask is None else rows_B & routing.mask
            share = admitted_T.sum() / admitted_T.numel()
            total = total + share * switch_balance(routing.probs, routing.chosen, *options, rows_B)
        return total
