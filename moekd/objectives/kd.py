"""Logit distillation (Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531).

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..signals import Signals, full_precision
from .base import OBJECTIVES, Loss, PairwiseObjective

if TYPE_CHECKING:
    from ..model import Batch
    from ..step import Step
    from ..teachers import TeacherPool


def kd_map(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """`T^2 KL(softmax(teacher / T) || softmax(student / T))` of every instance, or of every position.

    Gradients flow into both arguments: detach the target where it must not learn.

    Shape:
        student_logits, teacher_logits: `[B, C]` or dense `[B, C, ...]`; the class axis is 1. Result: `[B, ...]`.

    Raises:
        ModelError: the shapes differ.
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if student_logits.shape != teacher_logits.shape:
        raise ModelError(
            f"kd_kl: student logits {tuple(student_logits.shape)} and teacher's {tuple(teacher_logits.shape)} differ; "
            "teacher and student must share the class set"
        )
    student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(full_precision(teacher_logits) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def kd_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """The distillation loss of every instance: `kd_map`, for dense logits its mean over the positions.

    Shape:
        student_logits, teacher_logits: `[B, C]` or dense `[B, C, ...]`; the class axis is 1. Result: `[B]`.

    Raises:
        ModelError: the shapes differ.
        ValueError: the temperature is not positive.
    """
    losses = kd_map(student_logits, teacher_logits, temperature)
    return losses.flatten(1).mean(dim=1) if losses.dim() > 1 else losses


@OBJECTIVES.register("kd")
class KD(PairwiseObjective):
    """Temperature-scaled KL divergence from a teacher to the student: T^2 KL(teacher || student).

    Args:
        teacher: name of a teacher or variant ("multimodal", "multimodal/fusion"); without it the mean of the losses
            over all teacher variants, each with the same weight (average multi-teacher distillation).
        temperature: softmax temperature T > 0.
    """

    def __init__(self, teacher: str | None = None, temperature: float = 4.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.teacher, self.temperature = teacher, temperature

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"kd": [B]}`."""
        names = [self.teacher] if self.teacher else step.pool.experts
        losses = [self.pair(step.student, step.signals(name).detach(), step.batch) for name in names]
        return {"kd": torch.stack(losses).mean(dim=0)}

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `kd_kl` of the two models' logits, `[B]`."""
        return kd_kl(student.require_logits("kd"), teacher.require_logits("kd"), self.temperature)

    def pair_map(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `kd_map` of the two models' logits, `[B, ...positions]`."""
        return kd_map(student.require_logits("kd"), teacher.require_logits("kd"), self.temperature)

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the one teacher, or all variants."""
        return [self.teacher] if self.teacher else pool.experts
