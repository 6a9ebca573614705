"""Weights by how well each teacher predicts the label.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..measures import teacher_cross_entropy
from ..positions import Granularity, Rows
from .base import GATES, Gate
from .weights import complement, log_weights

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("label_confidence")
class LabelConfidenceGate(Gate):
    """Teachers that predict the label of a row count more for it (Zhang, Chen and Wang, "Confidence-Aware Multi-Teacher
    Knowledge Distillation", ICASSP 2022, arXiv 2201.00007).

        w_bt = (1 - exp(CE_bt) / sum_u exp(CE_bu)) / (T - 1),   CE_bt = -log softmax(z_bt)[y_b]

    No weight exceeds 1 / (T - 1): the formula mutes the worst teacher and is sharp for two teachers only. A single
    teacher has the weight 1. Rows without a label get uniform weights. The released code divides the loss by T once
    more; give the objective the weight 1 / T to repeat that.

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
        losses_BT, known_B = teacher_cross_entropy(step, "the gate 'label_confidence'", self.rows)
        return log_weights(label_confidence(losses_BT), known_B)


def label_confidence(losses_BT: Tensor) -> Tensor:
    """Return the weights for the teachers' cross-entropies, `[B, T]`."""
    return complement(losses_BT.softmax(dim=1))
