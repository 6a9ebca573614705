"""Relations inside one modality: whom a row resembles in the batch.

Shapes: B rows of this process, N rows of all processes; widths of student and teacher may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..signals import Signals
from .base import OBJECTIVES
from .contrastive_kd import soft_targets
from .embedding_pair import EmbeddingObjective, check_rows
from .embeddings import embedding, everywhere, own_columns, product, unit
from .equal_rows import equal_rows, hide

if TYPE_CHECKING:
    from ..model import Batch

Direction = Literal["teacher_student", "student_teacher"]


def relational_kl(
    student_BD: Tensor,
    teacher_BD: Tensor,
    student_scale: float = 10.0,
    teacher_scale: float = 10.0,
    equal_BN: Tensor | None = None,
    exclude_self: bool = True,
    direction: Direction = "teacher_student",
) -> Tensor:
    """KL divergence between whom each row resembles for the teacher and for the student:

        L_b = KL( softmax_{j != b}(G y_b . y_j) || softmax_{j != b}(g s_b . s_j) ),    |s| = |y| = 1

    Both models compare rows in their own space, as CompRess does with a memory of anchors (Koohpayegani et al.,
    NeurIPS 2020, arXiv 2010.14713); here the anchors are the other rows of the batch, of all processes.

    With `exclude_self` off, j runs over b itself too, as the formula of UniME has it (Gu et al., "Breaking the Modality
    Barrier", ACM MM 2025, arXiv 2504.17432, its stage 1, where both scales are one): at large scales that one score
    takes most of the probability. Its text prints the student's distribution first; which divergence is meant is not
    settled, so that `direction` offers both.

    Args:
        student_BD, teacher_BD: embeddings `[B, D]` of one modality, not normalised.
        student_scale, teacher_scale: g, G: 1 / temperature.
        equal_BN: rows of all processes that are left out of each own row's comparison, `[B, N]`, besides itself.
        exclude_self: leave out the row itself.
        direction: `teacher_student`: KL(teacher || student) as above; `student_teacher`: the other one.

    Returns:
        `[B]`; 0 where the batch has fewer than three rows.

    Raises:
        ModelError: different numbers of rows.
    """
    check_rows(student_BD, teacher_BD, "relational_kl")
    mine = _compared(student_BD, student_scale, equal_BN, exclude_self)
    theirs = _compared(teacher_BD, teacher_scale, equal_BN, exclude_self)
    return soft_targets(mine, theirs, "kl") if direction == "teacher_student" else soft_targets(theirs, mine, "kl")


@OBJECTIVES.register("relational_kl")
class RelationalKL(EmbeddingObjective):
    """Rows resemble each other for the student as they do for the teacher, see `relational_kl`; no heads are needed.

    Student and teacher give the embeddings of the modalities named here; their widths may differ. The losses of several
    modalities are averaged.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        modalities: names of the embeddings.
        student_scale, teacher_scale: 1 / temperature of each model's similarities.
        same: field of integers, such as `concept`: other rows with the same value are left out of a row's softmax.
        exclude_self: leave a row out of its own softmax; false as in UniME.
        direction: which KL divergence: `teacher_student` or `student_teacher`.
    """

    name = "relational_kl"
    compares_rows = True

    def __init__(
        self,
        teacher: str | None = None,
        modalities: Sequence[str] = ("image",),
        student_scale: float = 10.0,
        teacher_scale: float = 10.0,
        same: str | None = None,
        exclude_self: bool = True,
        direction: Direction = "teacher_student",
    ) -> None:
        super().__init__()
        self.teacher, self.same = teacher, same
        self.exclude_self, self.direction = exclude_self, direction
        if student_scale <= 0 or teacher_scale <= 0:
            raise ConfigError(f"relational_kl: scales must be positive, found {student_scale} and {teacher_scale}")
        if not modalities:
            raise ConfigError("relational_kl.modalities is empty; name at least one embedding, such as 'image'")
        self.modalities = list(modalities)
        self.student_scale, self.teacher_scale = student_scale, teacher_scale

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `relational_kl`, `[B]`, averaged over the modalities."""
        equal_BN = equal_rows(batch, self.same, "relational_kl")
        losses = [
            relational_kl(
                embedding(student, modality, "relational_kl (student)"),
                embedding(teacher, modality, "relational_kl (teacher)"),
                self.student_scale,
                self.teacher_scale,
                equal_BN,
                self.exclude_self,
                self.direction,
            )
            for modality in self.modalities
        ]
        return torch.stack(losses).mean(dim=0)


def _compared(values_BD: Tensor, scale: float, equal_BN: Tensor | None, exclude_self: bool) -> Tensor:
    """Return the scaled cosines of each row with all rows `[B, N]`, or with all but itself `[B, N - 1]`."""
    own_BD = unit(values_BD)
    rows_ND, first = everywhere(own_BD)
    mine_B1 = own_columns(own_BD.shape[0], first, own_BD.device)[:, None]
    scores_BN = scale * product(own_BD, rows_ND.T)
    if not exclude_self:
        itself_BN = mine_B1 == torch.arange(rows_ND.shape[0], device=own_BD.device)
        return hide(scores_BN, None if equal_BN is None else equal_BN & ~itself_BN)
    columns = torch.arange(max(rows_ND.shape[0] - 1, 0), device=own_BD.device).expand(own_BD.shape[0], -1)
    return hide(scores_BN, equal_BN).gather(1, columns + (columns >= mine_B1).long())
