"""Logit distillation (Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531).

Shapes: B batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..signals import Signals, full_precision
from .base import OBJECTIVES, PairwiseObjective
from .inputs import scores_of

if TYPE_CHECKING:
    from ..model import Batch


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


def standardise(logits: Tensor) -> Tensor:
    """Shift and scale the logits of every instance to mean 0 and standard deviation 1 over the classes.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427; the sample
    standard deviation (divisor C - 1) plus 1e-7 is the one of its code.

    Shape:
        logits: `[B, C]` or `[B, C, ...]`; the result has the same shape. With one class it is 0.
    """
    logits = full_precision(logits)
    centred = logits - logits.mean(dim=1, keepdim=True)
    if logits.shape[1] < 2 or not logits.numel():
        return centred
    return centred / (logits.std(dim=1, keepdim=True) + 1e-7)


@OBJECTIVES.register("kd")
class KD(PairwiseObjective):
    """Temperature-scaled KL divergence from a teacher to the student: T^2 KL(teacher || student).

    Args:
        teacher: name of a teacher or variant ("multimodal", "multimodal/fusion"); without it the mean of the losses
            over all teacher variants, each with the same weight (average multi-teacher distillation).
        temperature: softmax temperature T > 0.
        standardise: bring the logits of student and teacher to mean 0 and standard deviation 1 before the softmax
            (logit standardisation, arXiv 2403.01427, there with temperature 2 and weight 9), so that the student
            need not match the scale of the teacher's logits.
        reduction: `batchmean`: the divergence is the sum over the classes; `elements`: their mean, which is 1/C of it.
            PromptKD (arXiv 2403.02781) has a weight of 1000 on the latter, which is 1000/C on the former.
        head: head of the student that learns, such as one it has beside its classifier; None: its logits.
        teacher_head: head of the teacher that is compared; None: its logits.
    """

    name = "kd"

    def __init__(
        self,
        teacher: str | None = None,
        temperature: float = 4.0,
        standardise: bool = False,
        reduction: Literal["batchmean", "elements"] = "batchmean",
        head: str | None = None,
        teacher_head: str | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.teacher, self.temperature, self.standardise = teacher, temperature, standardise
        self.reduction, self.head, self.teacher_head = reduction, head, teacher_head
        if teacher_head is not None:
            self.logits_only, self.reads_logits, self.reads_embeddings = False, False, True

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `kd_kl` of the two models' logits, `[B]`."""
        logits = self._logits(student, teacher)
        return kd_kl(*logits, self.temperature) / self._divisor(logits[0])

    def pair_map(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `kd_map` of the two models' logits, `[B, ...positions]`."""
        logits = self._logits(student, teacher)
        return kd_map(*logits, self.temperature) / self._divisor(logits[0])

    def _divisor(self, logits: Tensor) -> int:
        return logits.shape[1] if self.reduction == "elements" else 1

    def _logits(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        logits = scores_of(student, self.head, "kd"), scores_of(teacher, self.teacher_head, "kd (teacher)")
        return (standardise(logits[0]), standardise(logits[1])) if self.standardise else logits
