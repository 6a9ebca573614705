"""Relations inside one modality: whom a row resembles in the batch.

Shapes: B rows of this process, N rows of all processes; widths of student and teacher may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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


def relational_kl(
    student_BD: Tensor,
    teacher_BD: Tensor,
    student_scale: float = 10.0,
    teacher_scale: float = 10.0,
    equal_BN: Tensor | None = None,
) -> Tensor:
    """KL divergence between whom each row resembles for the teacher and for the student:

        L_b = KL( softmax_{j != b}(G y_b . y_j) || softmax_{j != b}(g s_b . s_j) ),    |s| = |y| = 1

    Both models compare rows in their own space, as CompRess does with a memory of anchors (Koohpayegani et al.,
    NeurIPS 2020, arXiv 2010.14713); here the anchors are the other rows of the batch, of all processes.

    Args:
        student_BD, teacher_BD: embeddings `[B, D]` of one modality, not normalised.
        student_scale, teacher_scale: g, G: 1 / temperature.
        equal_BN: rows of all processes that are left out of each own row's comparison, `[B, N]`, besides itself.

    Returns:
        `[B]`; 0 where the batch has fewer than three rows.

    Raises:
        ModelError: different numbers of rows.
    """
    check_rows(student_BD, teacher_BD, "relational_kl")
    mine, theirs = _others(student_BD, student_scale, equal_BN), _others(teacher_BD, teacher_scale, equal_BN)
    return soft_targets(mine, theirs, "kl")


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
    ) -> None:
        super().__init__()
        self.teacher, self.same = teacher, same
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
            )
            for modality in self.modalities
        ]
        return torch.stack(losses).mean(dim=0)


def _others(values_BD: Tensor, scale: float, equal_BN: Tensor | None) -> Tensor:
    """Return the scaled cosines of each row with all rows but itself, `[B, N - 1]`."""
    own_BD = unit(values_BD)
    rows_ND, first = everywhere(own_BD)
    mine_B1 = own_columns(own_BD.shape[0], first, own_BD.device)[:, None]
    columns = torch.arange(max(rows_ND.shape[0] - 1, 0), device=own_BD.device).expand(own_BD.shape[0], -1)
    return hide(scale * product(own_BD, rows_ND.T), equal_BN).gather(1, columns + (columns >= mine_B1).long())
