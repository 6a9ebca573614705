"""Affinity mimicking: image-text similarities of both models at one fixed scale.

Shapes: B batch.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import ConfigError
from ..routers.routing import Mix
from ..signals import Signals
from .base import OBJECTIVES
from .contrastive_kd import contrastive_kd, soft_targets
from .embedding_pair import TwoEmbeddings
from .embeddings import Pairs
from .similarity_pair import Scores, SimilarityObjective


def affinity_mimicking(student: TwoEmbeddings, teacher: TwoEmbeddings, scale: float = 50.0) -> Tensor:
    """The affinity loss of TinyCLIP (Wu et al., "TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight
    Inheritance", ICCV 2023, arXiv 2309.12314): `contrastive_kd` in the form `soft_ce`, with the same fixed scale for
    student and teacher, so that the targets are as smooth as the student's own scores.

    Args:
        student, teacher: (image, text) embeddings `[B, D]`; the two models may have different widths.
        scale: factor of all cosines; 50 in the released scripts.

    Returns:
        `[B]`.
    """
    return contrastive_kd(student, teacher, scale, scale, "soft_ce")


@OBJECTIVES.register("affinity")
class AffinityMimicking(SimilarityObjective):
    """The student's image-text affinities follow the teacher's at one scale, see `affinity_mimicking`.

    Student and teacher give the embeddings `image` and `text` (or those named here); widths may differ between them.
    Add a `contrastive` objective for the hard loss.

    Args:
        teacher: name of a teacher or variant; None: all of them.
        scale: factor of all cosines.
        mix: one target for all teachers, `probs`, `logits`, `logmeanexp` or `confidence`, see `mixture`; None: the mean
            of the losses over the teachers.
        same: field of integers, such as `concept`: other rows with the same value are left out of a row's softmax, for
            both models.
        image, text: names of the two embeddings.
    """

    name = "affinity"

    def __init__(
        self,
        teacher: str | None = None,
        scale: float = 50.0,
        mix: Mix | None = None,
        same: str | None = None,
        image: str = "image",
        text: str = "text",
    ) -> None:
        super().__init__()
        self.teacher, self.mix, self.same = teacher, mix, same
        if scale <= 0:
            raise ConfigError(f"affinity.scale must be positive, found {scale}")
        self.scale, self.image, self.text = scale, image, text

    def student_scores(self, student: Signals, pairs: Pairs) -> Scores:
        """Return the student's scaled similarities, texts of images and images of texts."""
        return self.scale * pairs.image_to_text, self.scale * pairs.text_to_image

    def teacher_scores(self, name: str, teacher: Signals, pairs: Pairs) -> Scores:
        """Return the teacher's scaled similarities."""
        return self.scale * pairs.image_to_text, self.scale * pairs.text_to_image

    def compare(self, student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
        """Return the cross-entropy with the teacher's distribution, `[B]`."""
        return soft_targets(student_BN, teacher_BN)
