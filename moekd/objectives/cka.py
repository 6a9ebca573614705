"""Centred kernel alignment as a distillation loss (Kornblith et al., "Similarity of Neural Network Representations
Revisited", ICML 2019, arXiv 1905.00414; as a loss: Zhou et al., "Rethinking Centered Kernel Alignment in Knowledge
Distillation", IJCAI 2024, arXiv 2401.11824).

Shapes: B batch, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import TapPair, TeacherTap, no_autocast

if TYPE_CHECKING:
    from ..model import Batch


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear CKA of two activations for the same instances, a scalar in [0, 1]; 1 where one of them is constant.

        CKA = <K_a, K_b> / (||K_a|| ||K_b||),   K = (H X)(H X)^T, H X the centred activations

    It is invariant to rotations and to the scale of either. Written with Gram matrices `[B, B]`, whatever the widths.

    Shape:
        a, b: `[B, ...]` of any sizes.
    """
    with no_autocast(a):
        grams = []
        for x in (a.flatten(1), b.flatten(1)):
            centred = x - x.mean(dim=0, keepdim=True)
            scale = centred.detach().square().mean().sqrt().clamp_min(torch.finfo(x.dtype).tiny)
            grams.append((centred / scale) @ (centred / scale).T)
        squares = grams[0].square().sum() * grams[1].square().sum()
        varies = squares > 1e-12
        norms = squares.where(varies, torch.ones_like(squares)).sqrt()
        alignment = (grams[0] * grams[1]).sum() / norms
        return alignment.where(varies, torch.ones_like(alignment))


@OBJECTIVES.register("cka")
class CKA(PairwiseObjective):
    """`1 - CKA` of the activations at one tap of each model, a loss of the whole batch that counts for every instance.

    Args:
        student_tap: tap of the student.
        teacher_tap: tap of the teacher, or one a teacher by name.
        teacher: the one teacher or variant; without it the mean over all.
        shapes: sizes of the taps.
    """

    name = "cka"
    reads_features, reads_logits, logits_only, compares_rows = True, False, False, True

    def __init__(
        self,
        student_tap: str,
        teacher_tap: TeacherTap,
        teacher: str | None = None,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.taps = TapPair("cka", student_tap, teacher_tap, teacher, shapes)

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `1 - linear_cka` for every instance, `[B]`."""
        mine, other = self.taps.features(name, student, teacher)
        return (1 - linear_cka(mine, other)).expand(mine.shape[0])
