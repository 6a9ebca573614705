"""Decoupled distillation (Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679).

Shapes: B batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..signals import Signals, full_precision
from .base import OBJECTIVES, PairwiseObjective
from .inputs import logits_of, targets_of

if TYPE_CHECKING:
    from ..model import Batch


def other_classes(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities among the classes that are not the target, with 0 at the target's place.

    Shape:
        logits: `[B, C, ...]`; target: `[B, ...]`; result: `[B, C, ...]`, and where the target is, the same, bool.
    """
    at_target = torch.zeros_like(logits, dtype=torch.bool).scatter(1, target.unsqueeze(1), True)
    if logits.shape[1] < 2:
        return torch.zeros_like(logits), at_target
    log_probs = logits.masked_fill(at_target, -torch.inf).log_softmax(dim=1)
    return log_probs.masked_fill(at_target, 0.0), at_target


def decoupled_kd(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """`T^2 (alpha TCKD + beta NCKD)` of every instance or position (equation 7 of the paper).

    TCKD = KL(b_t || b_s) of the two probabilities of target and non-target; NCKD = KL of the distributions among the
    other classes. With alpha = 1 and beta = 1 - p_t(target) their sum is the distillation loss `kd_map`.

    Shape:
        student, teacher: `[B, C]` or `[B, C, ...]`; target: `[B]` or `[B, ...]`; result: like target.
    """
    student, teacher = full_precision(student) / temperature, full_precision(teacher) / temperature
    if student.shape[1] < 2:
        return (student * 0).sum(dim=1)
    (yes_s, no_s), (yes_t, no_t) = (_target_or_not(logits, target) for logits in (student, teacher))
    tckd = yes_t.exp() * (yes_t - yes_s) + no_t.exp() * (no_t - no_s)
    others_s, _ = other_classes(student, target)
    others_t, at_target = other_classes(teacher, target)
    nckd = (others_t.exp() * (others_t - others_s)).masked_fill(at_target, 0.0).sum(dim=1)
    return temperature**2 * (alpha * tckd + beta * nckd)


def _target_or_not(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities that it is the target, and that it is another class, both `[B, ...]`."""
    at_target = torch.zeros_like(logits, dtype=torch.bool).scatter(1, target.unsqueeze(1), True)
    odds = logits.gather(1, target.unsqueeze(1)).squeeze(1) - logits.masked_fill(at_target, -torch.inf).logsumexp(dim=1)
    return F.logsigmoid(odds), F.logsigmoid(-odds)


@OBJECTIVES.register("dkd")
class DKD(PairwiseObjective):
    """Distillation with separate weights for the target's probability and for the distribution among other classes.

    Instances without a label take the class that the teacher prefers as their target. The released code raises the
    weight linearly over the first 20 epochs: give the objective a schedule as its weight.

    Args:
        teacher: the one teacher or variant; without it the mean over all.
        alpha: weight of the target part.
        beta: weight of the other classes.
        temperature: softmax temperature T > 0.
    """

    name = "dkd"

    def __init__(
        self, teacher: str | None = None, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.teacher, self.alpha, self.beta, self.temperature = teacher, alpha, beta, temperature

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `decoupled_kd`, for dense logits its mean over the positions, `[B]`."""
        loss = self.pair_map(student, teacher, batch)
        return loss.flatten(1).mean(dim=1) if loss.dim() > 1 else loss

    def pair_map(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `decoupled_kd` of every position, `[B, ...positions]`."""
        mine, other = logits_of(student, teacher, "dkd")
        return decoupled_kd(mine, other, targets_of(batch, other), self.alpha, self.beta, self.temperature)
