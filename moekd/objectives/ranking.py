"""The order in which the teacher ranks the texts of an image, and the images of a text.

Shapes: B rows of this process, N rows of all processes, k candidates a row; widths of student and teacher may differ.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..routers.routing import Mix
from .base import OBJECTIVES
from .embedding_pair import TeacherScale, check_teacher_scale
from .embeddings import LogitScale, ScaleSource
from .equal_rows import HIDDEN
from .similarity_pair import SimilarityObjective


def ranking(student_BN: Tensor, teacher_BN: Tensor, top_k: int | None = None) -> Tensor:
    """RankNet with the teacher's probabilities (Burges et al., "Learning to Rank using Gradient Descent", ICML 2005).

    For each pair of candidates i, j of a row, the probability that i ranks before j is sigmoid(z_i - z_j); the loss is
    the KL divergence of these probabilities from the teacher's, averaged over the pairs:

        L_b = mean_{i < j} KL( Bernoulli(sigmoid(y_bi - y_bj)) || Bernoulli(sigmoid(z_bi - z_bj)) )

    It is 0, with no gradient, where all differences agree. Needs memory for B k^2 numbers.

    Args:
        student_BN, teacher_BN: scaled similarities `[B, N]`.
        top_k: compare the k candidates that the teacher ranks highest; None: all.

    Returns:
        `[B]`; 0 where there is one candidate.
    """
    if top_k is not None and top_k < teacher_BN.shape[1]:
        best_Bk = teacher_BN.topk(top_k, dim=1).indices
        student_BN, teacher_BN = student_BN.gather(1, best_Bk), teacher_BN.gather(1, best_Bk)
    student_Bkk = student_BN[:, :, None] - student_BN[:, None, :]
    teacher_Bkk = teacher_BN[:, :, None] - teacher_BN[:, None, :]
    target_Bkk = teacher_Bkk.sigmoid()
    losses = F.binary_cross_entropy_with_logits(student_Bkk, target_Bkk, reduction="none")
    losses = losses - F.binary_cross_entropy_with_logits(teacher_Bkk, target_Bkk, reduction="none")
    candidates_B = (teacher_BN > HIDDEN / 2).sum(dim=1)
    # Pairs (i, j) and (j, i) say the same, and (i, i) says nothing: the sum over all is twice the one over i < j.
    return losses.sum(dim=(1, 2)) / (candidates_B * (candidates_B - 1)).clamp_min(1)


@OBJECTIVES.register("ranking")
class Ranking(SimilarityObjective):
    """The student ranks texts for images, and images for texts, as the teacher does, see `ranking`; both are averaged.

    Student and teacher give the embeddings `image` and `text` (or those named here); their widths may differ.

    Args:
        teacher: name of a teacher or variant; None: all of them.
        top_k: candidates that are compared, those that the teacher ranks highest; None: all of the batch.
        student_scale: `learned` (a parameter of this objective), `model` (the student's own) or a number.
        teacher_scale: `model`, a number, or a number by teacher.
        mix: one target for all teachers, `probs`, `logits`, `logmeanexp` or `confidence`, see `mixture`; None: the mean
            of the losses over the teachers.
        same: field of integers, such as `concept`: other rows with the same value are no candidates of a row.
        initial_scale, max_scale: first and largest value of a learned scale.
        image, text: names of the two embeddings.
    """

    name = "ranking"

    def __init__(
        self,
        teacher: str | None = None,
        top_k: int | None = 16,
        student_scale: ScaleSource = "learned",
        teacher_scale: str | float | dict[str, float] = "model",
        mix: Mix | None = None,
        same: str | None = None,
        initial_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        image: str = "image",
        text: str = "text",
    ) -> None:
        super().__init__()
        self.teacher, self.mix, self.same = teacher, mix, same
        if top_k is not None and top_k < 2:
            raise ConfigError(f"ranking.top_k must be at least 2 (or null for all), found {top_k}")
        check_teacher_scale(teacher_scale, "ranking")
        self.top_k = top_k
        self.student_scale = LogitScale(student_scale, initial_scale, max_scale)
        self.teacher_scale: TeacherScale = teacher_scale
        self.image, self.text = image, text

    def compare(self, student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
        """Return `ranking`, `[B]`."""
        return ranking(student_BN, teacher_BN, self.top_k)
