"""A model learns from another head of its own.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..signals import full_precision
from .base import OBJECTIVES, Loss, Objective
from .inputs import scores_of

if TYPE_CHECKING:
    from ..step import Step


def softened_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened scores, one value a row; it ends at the entropy of the target:

        L_b = - sum_c softmax(z^t_b / T)_c log softmax(z^s_b / T)_c

    Gradients flow into both: detach the target where it must not learn.

    Returns:
        `[B]`.

    Raises:
        ModelError: the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ModelError(
            f"self_kd: scores {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)} differ; both heads have "
            "to score the same classes"
        )
    student, teacher = (full_precision(logits) / temperature for logits in (student_logits, teacher_logits))
    return -(teacher.softmax(dim=1) * F.log_softmax(student, dim=1)).sum(dim=1)


@OBJECTIVES.register("self_kd")
class SelfKD(Objective):
    """One head of the student teaches another, by softened cross-entropy.

    The implicit distillation of SgVA-CLIP (arXiv 2211.16191): the frozen cross-modal score teaches the score of the
    adapted picture, with a temperature of 5 and no factor T^2. Its code lets gradients into the target too, which moves
    learned prompts; that is `target_grad`.

    Args:
        head: head that learns; None: the student's logits.
        target: head that teaches; None: the student's logits.
        temperature: T > 0.
        tau_squared: multiply the loss with T^2.
        target_grad: let the target learn from it as well.
    """

    reads_logits = False

    def __init__(
        self,
        head: str | None = None,
        target: str | None = None,
        temperature: float = 5.0,
        tau_squared: bool = False,
        target_grad: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.head, self.target, self.temperature = head, target, temperature
        self.factor, self.target_grad = temperature**2 if tau_squared else 1.0, target_grad

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"self_kd": [B]}`."""
        learns, teaches = (scores_of(step.student, name, "self_kd") for name in (self.head, self.target))
        target = teaches if self.target_grad else teaches.detach()
        return {"self_kd": self.factor * softened_cross_entropy(learns, target, self.temperature)}
