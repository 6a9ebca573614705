"""Weights by how sure each teacher is.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..measures import teacher_entropy
from ..positions import Granularity, Rows
from .base import GATES, Gate
from .weights import complement, log_weights

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("entropy")
class EntropyGate(Gate):
    """Teachers that are sure of a row count more for it; no labels needed (Kwon et al., "Adaptive Knowledge
    Distillation Based on Entropy", ICASSP 2020).

        w_bt = (1 - H_bt / sum_u H_bu) / (T - 1),   H_bt = -sum_c p_btc log p_btc,   p_bt = softmax(z_bt)

    No weight exceeds 1 / (T - 1): the formula mutes the least sure teacher and is sharp for two teachers only. A single
    teacher has the weight 1; teachers that are all certain (H = 0) have equal weights. For dense logits H is the mean
    over the pixels, or that of each token or pixel, as `granularity` says.

    Use it with the selection `dense` and combine `loss`.

    Args:
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
    """

    needs_teachers = True
    gives_weights = True

    def __init__(self, granularity: Granularity = "instance", mask_field: str | None = None) -> None:
        super().__init__()
        self.rows = Rows(granularity, mask_field)

    def forward(self, step: Step) -> Tensor:
        """Return the logarithms of the weights, `[B, T]`."""
        return log_weights(entropy_weights(teacher_entropy(self.rows.teacher_logits(step))))


def entropy_weights(entropies_BT: Tensor) -> Tensor:
    """Return the weights for the teachers' entropies, `[B, T]`."""
    total_B1 = entropies_BT.sum(dim=1, keepdim=True)
    floor = torch.finfo(entropies_BT.dtype).tiny
    shares = torch.where(total_B1 > floor, entropies_BT / total_B1.clamp_min(floor), 1 / entropies_BT.shape[1])
    return complement(shares)
