"""What routers measure about teachers: cross-entropy, entropy, distance to the student.

Everything here is detached: a router that is a formula gives nobody a gradient.

Shapes: B batch, T teacher variants, C classes, H x W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError
from ..signals import full_precision
from .positions import Rows

if TYPE_CHECKING:
    from ..step import Step

INSTANCES = Rows()


def teacher_logits(step: Step) -> Tensor:
    """Return what all experts say, `[B, T, C]` or dense `[B, T, C, H, W]`, in full precision."""
    return INSTANCES.teacher_logits(step)


def student_logits(step: Step, who: str) -> Tensor:
    """Return what the student says, `[B, C]` or dense, detached, in full precision."""
    return full_precision(step.student.require_logits(who).detach())


def over_pixels(values: Tensor) -> Tensor:
    """Mean over whatever follows the axes B and T, `[B, T, ...] -> [B, T]`."""
    return values.flatten(2).mean(dim=2) if values.dim() > 2 else values


def labels_of(step: Step, who: str) -> tuple[Tensor, Tensor]:
    """Return (classes `[B]`, which rows have a label `[B]`); the class of a row without a label is 0.

    Raises:
        ModelError: there is more than one label an instance.
    """
    return INSTANCES.labels(step, who)


def teacher_cross_entropy(step: Step, who: str, rows: Rows = INSTANCES, hidden: bool = False) -> tuple[Tensor, Tensor]:
    """Return (`CE_bt = -log softmax(z_bt)[y_b]`, which rows have a label), `[R, T]` and `[R]`.

    Raises:
        ModelError: logits or labels are dense, but instances are routed.
    """
    classes, known = rows.labels(step, who, hidden)
    logits = rows.teacher_logits(step)
    if logits.dim() != 3:
        raise ModelError(f"{who} needs teachers' logits [batch, teachers, classes], found {tuple(logits.shape)}")
    index = classes[:, None, None].expand(-1, logits.shape[1], 1)
    return -logits.log_softmax(dim=2).gather(2, index).squeeze(2), known


def teacher_entropy(logits: Tensor) -> Tensor:
    """Return `H_bt = -sum_c p_btc log p_btc` in nats, `[B, T]`, the mean over pixels for dense logits."""
    log_probs = logits.log_softmax(dim=2)
    probs = log_probs.exp()
    return over_pixels(-torch.where(probs > 0, probs * log_probs, 0.0).sum(dim=2))


def distance_to_student(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """Return `KD_bt = T^2 KL(softmax(z_bt / T) || softmax(s_b / T))`, `[B, T]`: the loss `kd` to every teacher.

    Shape:
        student: `[B, C]` or `[B, C, H, W]`; teachers: `[B, T, C]` or `[B, T, C, H, W]`.
    """
    target = (teachers / temperature).log_softmax(dim=2)
    log_probs = (student / temperature).log_softmax(dim=1).unsqueeze(1)
    terms = torch.where(target.exp() > 0, target.exp() * (target - log_probs), 0.0)
    return temperature**2 * over_pixels(terms.sum(dim=2))
