"""Attention transfer (Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of
Convolutional Neural Networks via Attention Transfer", ICLR 2017, arXiv 1612.03928).

Shapes: B batch, C channels, D features, N tokens, H x W pixels, P positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import TapPair, TeacherTap

if TYPE_CHECKING:
    from ..model import Batch


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """`sum_c |A_c|^power` at every position, scaled to length 1 (`F_sum^p` of the paper), `[B, P]`.

    Shape:
        features: maps `[B, C, H, W]` or tokens `[B, N, D]`.
    """
    energy = features.abs().pow(power)
    return F.normalize((energy.mean(dim=1) if features.dim() == 4 else energy.mean(dim=2)).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of the two attention maps, `[B]`; the larger map is averaged down to the smaller one.

    Shape:
        student, teacher: maps `[B, C, H, W]` of any sizes, or tokens `[B, N, D]` with the same N.

    Raises:
        ModelError: the activations have no positions in common.
    """
    tokens = student.dim() == teacher.dim() == 3 and student.shape[1] == teacher.shape[1]
    if not tokens and not student.dim() == teacher.dim() == 4:
        raise ModelError(
            f"attention_transfer compares maps [B, C, H, W] or tokens [B, N, D] with the same N; found "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not tokens:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        student, teacher = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
    return (attention_map(student, power) - attention_map(teacher, power)).square().mean(dim=1)


@OBJECTIVES.register("attention_transfer")
class AttentionTransfer(PairwiseObjective):
    """Where the student looks matches where the teacher looks, at one tap of each.

    Several pairs of taps: the objective several times, with names of their own. The published weight is 1000 a pair of
    taps (beta / 2 with beta = 1000 over squared norms in the paper, 1000 over means in its successors).

    Args:
        student_tap: tap of the student.
        teacher_tap: tap of the teacher, or one a teacher by name.
        teacher: the one teacher or variant; without it the mean over all.
        power: exponent p of the activations.
        shapes: sizes of the taps.
    """

    name = "attention_transfer"
    reads_features, reads_logits, logits_only = True, False, False

    def __init__(
        self,
        student_tap: str,
        teacher_tap: TeacherTap,
        teacher: str | None = None,
        power: float = 2.0,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        if power <= 0:
            raise ValueError(f"power must be positive, found {power}")
        self.teacher, self.power = teacher, power
        self.taps = TapPair("attention_transfer", student_tap, teacher_tap, teacher, shapes)

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `attention_loss`, `[B]`."""
        return attention_loss(*self.taps.features(name, student, teacher), self.power)
