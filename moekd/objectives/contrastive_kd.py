"""Soft contrastive distillation: the student ranks the batch's texts for an image as the teacher does.

Shapes: B rows of this process, N rows of all processes; widths of student and teacher may differ.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..routers.routing import Mix
from .base import OBJECTIVES
from .embedding_pair import TeacherScale, TwoEmbeddings, check_rows, check_teacher_scale
from .embeddings import LogitScale, Scale, ScaleSource, similarities
from .similarity_pair import SimilarityObjective

Form = Literal["soft_ce", "kl"]


def soft_targets(student_BN: Tensor, teacher_BN: Tensor, form: Form = "soft_ce") -> Tensor:
    """Cross-entropy of the softmax over each row with the teacher's, or (`kl`) the KL divergence from it.

        soft_ce_b = -sum_j p_bj log q_bj,    kl_b = sum_j p_bj (log p_bj - log q_bj),    p teacher, q student

    Both have the same gradient; `kl` is 0 where they agree, `soft_ce` ends at the teacher's entropy. `soft_ce` is
    linear in p: the mean of `soft_ce` over teachers is `soft_ce` against the mean of their probabilities.

    Shape:
        student_BN, teacher_BN: scaled similarities `[B, N]`; result: `[B]`.
    """
    log_q, log_p = student_BN.log_softmax(dim=1), teacher_BN.log_softmax(dim=1)
    return -(log_p.exp() * (log_q if form == "soft_ce" else log_q - log_p)).sum(dim=1)


def contrastive_kd(
    student: TwoEmbeddings,
    teacher: TwoEmbeddings,
    student_scale: Scale,
    teacher_scale: Scale,
    form: Form = "soft_ce",
) -> Tensor:
    """`soft_targets` of the image-to-text and the text-to-image similarities, averaged.

    `soft_ce` is the distillation loss of open_clip (`DistillClipLoss`) and of MobileCLIP (Vasu et al., CVPR 2024, arXiv
    2311.17049, equation 2); `kl` is CRD of CLIP-KD (Yang et al., "CLIP-KD: An Empirical Study of CLIP Model
    Distillation", CVPR 2024, arXiv 2307.12732). Each side is multiplied by its own scale; there is no temperature
    besides. Gradients flow into both models: detach the teacher where it must not learn.

    Args:
        student, teacher: (image, text) embeddings `[B, D]`; the two models may have different widths.
        student_scale, teacher_scale: positive factors of the cosines.
        form: `soft_ce` or `kl`.

    Returns:
        `[B]`.

    Raises:
        ModelError: student and teacher have different numbers of rows.
    """
    check_rows(student[0], teacher[0], "contrastive_kd")
    mine, theirs = similarities(*student), similarities(*teacher)
    image_B = soft_targets(student_scale * mine.image_to_text, teacher_scale * theirs.image_to_text, form)
    text_B = soft_targets(student_scale * mine.text_to_image, teacher_scale * theirs.text_to_image, form)
    return (image_B + text_B) / 2


@OBJECTIVES.register("contrastive_kd")
class ContrastiveKD(SimilarityObjective):
    """The student's image-text similarities in the batch follow the teacher's, see `contrastive_kd`.

    Student and teacher give the embeddings `image` and `text` (or those named here), each of one width per model; the
    widths of the two models may differ. For a scale `model` they give their own scale as the head `logit_scale`.

    Args:
        teacher: name of a teacher or variant; None: all of them.
        form: `soft_ce` (open_clip) or `kl` (CLIP-KD).
        student_scale: `learned` (a parameter of this objective), `model` (the student's own, which `contrastive`
            can read too) or a number.
        teacher_scale: `model`, a number, or a number by teacher. The smoothness of the targets depends on it: 50 to 100
            for published CLIP models.
        mix: one target for all teachers: the mean of their probabilities (`probs`, as in MobileCLIP), of their logits,
            `logmeanexp` or `confidence`, see `mixture`; None: the mean of the losses over the teachers, which for
            `soft_ce` has the same value and gradient as `probs`.
        same: field of integers, such as `concept`: other rows with the same value are left out of a row's softmax, for
            both models.
        initial_scale, max_scale: first and largest value of a learned scale.
        image, text: names of the two embeddings.
    """

    name = "contrastive_kd"

    def __init__(
        self,
        teacher: str | None = None,
        form: Form = "soft_ce",
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
        check_teacher_scale(teacher_scale, "contrastive_kd")
        self.form: Form = form
        self.student_scale = LogitScale(student_scale, initial_scale, max_scale)
        self.teacher_scale: TeacherScale = teacher_scale
        self.image, self.text = image, text

    def compare(self, student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
        """Return `soft_targets`, `[B]`."""
        return soft_targets(student_BN, teacher_BN, self.form)
