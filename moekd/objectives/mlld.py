"""Multi-level logit distillation (Jin et al., "Multi-Level Logit Distillation", CVPR 2023).

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import logits_of, no_autocast
from .kd import kd_kl

if TYPE_CHECKING:
    from ..model import Batch

Normalisation = Literal["sum", "mean"]


def class_correlation(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Squared Frobenius norm of `P_s^T P_s - P_t^T P_t` for probabilities P, divided by C, a scalar."""
    with no_autocast(student_BC):
        difference_CC = student_BC.T @ student_BC - teacher_BC.T @ teacher_BC
    return difference_CC.square().sum() / student_BC.shape[1]


def batch_correlation(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Squared row norms of `P_s P_s^T - P_t P_t^T` for probabilities P, `[B]`; their mean is the norm divided by B."""
    with no_autocast(student_BC):
        difference_BB = student_BC @ student_BC.T - teacher_BC @ teacher_BC.T
    return difference_BB.square().sum(dim=1)


def multi_level_loss(
    student_BC: Tensor, teacher_BC: Tensor, temperatures: Sequence[float], normalisation: Normalisation = "sum"
) -> Tensor:
    """Loss of instances, batch and classes, over several temperatures, `[B]`.

    `sum`: the sum over the temperatures of `KD_T + CC_T + BC_T` (the paper's three levels). `mean`: the mean over
    temperatures and levels, CC divided by C and BC by B once more (MST-Distill's benchmark); KD then dominates.

    Shape:
        student_BC, teacher_BC: logits `[B, C]`; result: `[B]`.
    """
    losses = []
    for temperature in temperatures:
        student, teacher = ((x / temperature).softmax(dim=1) for x in (student_BC, teacher_BC))
        classes, rows_B = class_correlation(student, teacher), batch_correlation(student, teacher)
        if normalisation == "mean":
            classes, rows_B = classes / student_BC.shape[1], rows_B / max(1, student_BC.shape[0])
        losses.append(kd_kl(student_BC, teacher_BC, temperature) + classes + rows_B)
    total = torch.stack(losses).sum(dim=0)
    return total / (3 * len(temperatures)) if normalisation == "mean" else total


@OBJECTIVES.register("mlld")
class MultiLevelLogits(PairwiseObjective):
    """Distillation at the level of the instance (KD), of the batch and of the classes (correlations of probabilities).

    The original adds a second view of strong augmentation and masks by confidence; neither is part of this loss.
    Correlations over instances are those within the batch of a process.

    Args:
        teacher: the one teacher or variant; without it the mean over all.
        temperatures: softmax temperatures T > 0.
        normalisation: `sum` (paper) or `mean` (MST-Distill's benchmark).
    """

    name = "mlld"
    compares_rows = True

    def __init__(
        self,
        teacher: str | None = None,
        temperatures: list[float] | None = None,
        normalisation: Normalisation = "sum",
    ) -> None:
        super().__init__()
        self.temperatures = [2.0, 3.0, 4.0, 5.0, 6.0] if temperatures is None else list(temperatures)
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperatures must be positive, and at least one; found {self.temperatures}")
        self.teacher, self.normalisation = teacher, normalisation

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `multi_level_loss`, `[B]`."""
        mine, other = logits_of(student, teacher, "mlld", dense=False)
        return multi_level_loss(mine, other, self.temperatures, self.normalisation)
