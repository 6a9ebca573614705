"""The student's embedding finds the teacher's of the same row among those of all rows.

Shapes: B rows of this process, N rows of all processes, D width of the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES
from .embedding_pair import EmbeddingObjective, check_rows
from .embeddings import embedding, everywhere, own_columns, product, unit
from .equal_rows import equal_rows, hide
from .projection import Heads, PlainProjection, check_widths

if TYPE_CHECKING:
    from ..model import Batch

Direction = Literal["both", "student"]


def embedding_contrastive(
    student_BD: Tensor,
    teacher_BD: Tensor,
    temperature: float = 0.07,
    direction: Direction = "both",
    hidden_BN: Tensor | None = None,
) -> Tensor:
    """Each row of the student against the teacher's rows, and (`both`) the other way round, one value a row:

        M = s t^T / tau,    L_b = 1/2 [ -log softmax_j(M_bj)_b - log softmax_j(M_jb)_b ],    |s| = |t| = 1

    L_im-cst of Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability", ICCV
    2023, arXiv 2307.03135, with images on both sides, tau = 0.07 and `both`; its L_cap with the texts of captions on
    the side of the teacher, tau = 1 and `student`, where other rows of the same class are hidden.

    Args:
        student_BD, teacher_BD: embeddings of the same rows, of any length and of one width.
        temperature: tau.
        direction: `both`, or `student`: only the student's rows look for the teacher's.
        hidden_BN: pairs that take no part.

    Returns:
        `[B]`.

    Raises:
        ModelError: the widths differ.
    """
    check_widths(student_BD, teacher_BD, "embedding_contrastive")
    mine, theirs = unit(student_BD), unit(teacher_BD)
    keys_ND, first = everywhere(theirs)
    own_B = own_columns(mine.shape[0], first, mine.device)
    losses = [F.cross_entropy(hide(product(mine, keys_ND.T) / temperature, hidden_BN), own_B, reduction="none")]
    if direction == "both":
        queries_ND, _ = everywhere(mine)
        scores_BN = hide(product(theirs, queries_ND.T) / temperature, hidden_BN)
        losses.append(F.cross_entropy(scores_BN, own_B, reduction="none"))
    return sum(losses[1:], start=losses[0]) / len(losses)


@OBJECTIVES.register("embedding_contrastive")
class EmbeddingContrastive(EmbeddingObjective):
    """The student's embedding finds the teacher's of the same row, see `embedding_contrastive`.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        modality: embedding of the student.
        teacher_modality: embedding of the teacher; None: the same.
        temperature: of the cosines.
        direction: `both`, or `student`.
        hide_same: field of integers, such as `label`: other rows with the same value take no part (rows without a
            label, -1, do).
        projection: `auto` (a linear head where the widths differ), `none`, `linear` or `mlp`, see `Heads`; it needs one
            `modality` on both sides.
        shapes: widths of all embeddings.
    """

    name = "embedding_contrastive"
    compares_rows = True

    def __init__(
        self,
        teacher: str | None = None,
        modality: str = "image",
        teacher_modality: str | None = None,
        temperature: float = 0.07,
        direction: Direction = "both",
        hide_same: str | None = None,
        projection: PlainProjection = "auto",
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"embedding_contrastive.temperature must be positive, found {temperature}")
        self.teacher, self.modality, self.other = teacher, modality, teacher_modality or modality
        self.temperature, self.hide_same = temperature, hide_same
        self.direction: Direction = direction
        self.heads = Heads(projection, shapes, teacher, (modality,), self.name)

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `embedding_contrastive` of the two embeddings, `[B]`."""
        if self.other == self.modality:
            mine, theirs = self.heads.match(name, self.modality, student, teacher)
        else:
            mine = self.heads(name, self.modality, student)
            theirs = embedding(teacher, self.other, f"{self.name} (teacher)")
            check_rows(mine, theirs, self.name)
        hidden_BN = equal_rows(batch, self.hide_same, self.name)
        if hidden_BN is not None and self.hide_same is not None:
            value_B1 = batch[self.hide_same].reshape(-1, 1)
            own_B = own_columns(len(value_B1), everywhere(value_B1)[1], value_B1.device)
            columns_N = torch.arange(hidden_BN.shape[1], device=value_B1.device)
            hidden_BN = hidden_BN & (value_B1 >= 0) & (own_B[:, None] != columns_N)
        return embedding_contrastive(mine, theirs, self.temperature, self.direction, hidden_BN)
