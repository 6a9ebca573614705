"""Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682).

Shapes: B batch, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import TapPair, TeacherTap, no_autocast

if TYPE_CHECKING:
    from ..model import Batch


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the two similarity matrices, divided by B, one value a row, `[B]`.

    A similarity matrix is `Q Q^T` of the flattened activations with rows of length 1 (equations 1 to 3 of the paper);
    the mean over the rows is the published loss `||G_t - G_s||_F^2 / B^2` (equation 4).

    Shape:
        student, teacher: `[B, ...]` of any sizes.
    """
    with no_autocast(student):
        mine_BB, other_BB = (F.normalize(x.flatten(1) @ x.flatten(1).T, dim=1) for x in (student, teacher))
    return (mine_BB - other_BB).square().mean(dim=1)


@OBJECTIVES.register("similarity_preserving")
class SimilarityPreserving(PairwiseObjective):
    """Instances that are similar to the teacher are similar to the student, at one tap of each model.

    The published weight is 3000. Similarities are those within the batch of a process.

    Args:
        student_tap: tap of the student.
        teacher_tap: tap of the teacher, or one a teacher by name.
        teacher: the one teacher or variant; without it the mean over all.
        shapes: sizes of the taps.
    """

    name = "similarity_preserving"
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
        self.taps = TapPair("similarity_preserving", student_tap, teacher_tap, teacher, shapes)

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `similarity_loss`, `[B]`."""
        return similarity_loss(*self.taps.features(name, student, teacher))
