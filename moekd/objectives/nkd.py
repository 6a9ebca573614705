"""Normalised distillation (Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv 2303.13005).

Shapes: B batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..signals import Signals, full_precision
from .base import OBJECTIVES, PairwiseObjective
from .dkd import other_classes
from .inputs import logits_of, targets_of

if TYPE_CHECKING:
    from ..model import Batch


def normalised_kd(
    student: Tensor, teacher: Tensor, target: Tensor, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """`-p_t(y) log p_s(y) - gamma T^2 sum_c q_t(c) log q_s(c)` of every instance or position.

    y is the target, p the softmax at temperature 1, q the softmax at T among the other classes. It is a cross-entropy:
    its minimum is not 0.

    Shape:
        student, teacher: `[B, C]` or `[B, C, ...]`; target: `[B]` or `[B, ...]`; result: like target.
    """
    student, teacher = full_precision(student), full_precision(teacher)
    at = target.unsqueeze(1)
    soft_target = teacher.softmax(dim=1).gather(1, at) * student.log_softmax(dim=1).gather(1, at)
    others_s, _ = other_classes(student / temperature, target)
    others_t, at_target = other_classes(teacher / temperature, target)
    others = (others_t.exp() * others_s).masked_fill(at_target, 0.0).sum(dim=1)
    return -soft_target.squeeze(1) - gamma * temperature**2 * others


@OBJECTIVES.register("nkd")
class NKD(PairwiseObjective):
    """Distillation of the target's probability and of the normalised distribution among the other classes.

    Instances without a label take the class that the teacher prefers as their target.

    Args:
        teacher: the one teacher or variant; without it the mean over all.
        gamma: weight of the other classes.
        temperature: softmax temperature T > 0 of the other classes.
    """

    name = "nkd"

    def __init__(self, teacher: str | None = None, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.teacher, self.gamma, self.temperature = teacher, gamma, temperature

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `normalised_kd`, for dense logits its mean over the positions, `[B]`."""
        loss = self.pair_map(student, teacher, batch)
        return loss.flatten(1).mean(dim=1) if loss.dim() > 1 else loss

    def pair_map(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `normalised_kd` of every position, `[B, ...positions]`."""
        mine, other = logits_of(student, teacher, "nkd")
        return normalised_kd(mine, other, targets_of(batch, other), self.gamma, self.temperature)
