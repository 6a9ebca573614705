"""The gradient of the contrastive loss as the thing that is distilled.

Shapes: B rows of this process, N rows of all processes, D width of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES
from .embedding_pair import EmbeddingObjective, TeacherScale, TwoEmbeddings, check_teacher_scale, teacher_scale
from .embeddings import LogitScale, Scale, ScaleSource, product, similarities
from .equal_rows import equal_rows
from .projection import Heads, PlainProjection, check_widths

if TYPE_CHECKING:
    from ..model import Batch


def contrastive_gradients(
    image_BD: Tensor, text_BD: Tensor, scale: Scale, equal_BN: Tensor | None = None
) -> TwoEmbeddings:
    """Gradient of each row's InfoNCE with respect to that row's own embedding of length 1, as the anchor:

        g_b = scale * sum_j (softmax_j(scale v_b . t_j) - [j = b]) t_j,    and the same with image and text exchanged

    Args:
        image_BD, text_BD: embeddings `[B, D]` of the same rows; they are normalised here.
        scale: positive factor of the cosines.
        equal_BN: which rows of all processes are the same thing as each own row, `[B, N]`: [j = b] becomes
            [j equal to b] / |P_b|, see `matching_loss`; None: each is its own.

    Returns:
        The gradients with respect to images and texts, `[B, D]` each.
    """
    pairs = similarities(image_BD, text_BD)
    own_BN = (pairs.partners if equal_BN is None else equal_BN).to(pairs.images)
    own_BN = own_BN / own_BN.sum(dim=1, keepdim=True)
    image = scale * product((scale * pairs.image_to_text).softmax(dim=1) - own_BN, pairs.texts)
    text = scale * product((scale * pairs.text_to_image).softmax(dim=1) - own_BN, pairs.images)
    return image, text


def gradient_kd(
    student: TwoEmbeddings,
    teacher: TwoEmbeddings,
    student_scale: Scale,
    teacher_scale: Scale,
    equal_BN: Tensor | None = None,
) -> Tensor:
    """Squared difference of student's and teacher's `contrastive_gradients`, the mean over D and over image and text
    (GD of CLIP-KD: Yang et al., CVPR 2024, arXiv 2307.12732).

    The gradients are those of each row's own loss, without the factor 1 / N of a batch mean, so that the size of the
    loss does not depend on the batch; the published weight of 1e8 belongs to a form with both factors.

    Args:
        student, teacher: (image, text) embeddings `[B, D]` of the same width.
        student_scale, teacher_scale: positive factors of the cosines.
        equal_BN: which rows are the same thing, `[B, N]`.

    Returns:
        `[B]`.

    Raises:
        ModelError: the widths differ.
    """
    check_widths(student[0], teacher[0], "gradient_kd")
    mine = contrastive_gradients(*student, student_scale, equal_BN)
    theirs = contrastive_gradients(*teacher, teacher_scale, equal_BN)
    image_B, text_B = ((a - b).square().mean(dim=1) for a, b in zip(mine, theirs, strict=True))
    return (image_B + text_B) / 2


@OBJECTIVES.register("gradient_kd")
class GradientKD(EmbeddingObjective):
    """The contrastive loss pulls the student's embeddings where it pulls the teacher's, see `gradient_kd`.

    Student and teacher give the embeddings `image` and `text` (or those named here); with different widths, heads map
    the student's to the teacher's.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        student_scale: `learned` (a parameter of this objective), `model` (the student's own) or a number.
        teacher_scale: `model`, a number, or a number by teacher.
        initial_scale, max_scale: first and largest value of a learned scale.
        projection: `auto` (a linear head where the widths differ), `none`, `linear` or `mlp`, see `Heads`.
        same: field of integers, such as `concept`: rows with the same value are no negatives of each other.
        image, text: names of the two embeddings.
        shapes: widths of all embeddings.
    """

    name = "gradient_kd"
    compares_rows = True

    def __init__(
        self,
        teacher: str | None = None,
        student_scale: ScaleSource = "learned",
        teacher_scale: str | float | dict[str, float] = "model",
        initial_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        projection: PlainProjection = "auto",
        same: str | None = None,
        image: str = "image",
        text: str = "text",
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.teacher, self.same = teacher, same
        check_teacher_scale(teacher_scale, "gradient_kd")
        self.student_scale = LogitScale(student_scale, initial_scale, max_scale)
        self.teacher_scale: TeacherScale = teacher_scale
        self.heads = Heads(projection, shapes, teacher, (image, text), self.name)
        self.image, self.text = image, text

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `gradient_kd` of the two models' embeddings, `[B]`."""
        image, text = (self.heads.match(name, m, student, teacher) for m in (self.image, self.text))
        mine, theirs = (image[0], text[0]), (image[1], text[1])
        scale = teacher_scale(self.teacher_scale, name, teacher, "gradient_kd")
        equal_BN = equal_rows(batch, self.same, self.name)
        return gradient_kd(mine, theirs, self.student_scale(student, "gradient_kd"), scale, equal_BN)
