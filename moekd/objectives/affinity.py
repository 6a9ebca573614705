"""Affinity mimicking: image-text similarities of both models at one fixed scale.

Shapes: B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import ConfigError
from ..signals import Signals
from .base import OBJECTIVES
from .contrastive_kd import contrastive_kd
from .embedding_pair import EmbeddingObjective, TwoEmbeddings

if TYPE_CHECKING:
    from ..model import Batch


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
class AffinityMimicking(EmbeddingObjective):
    """The student's image-text affinities follow the teacher's at one scale, see `affinity_mimicking`.

    Student and teacher give the embeddings `image` and `text` (or those named here); widths may differ between them.
    Add a `contrastive` objective for the hard loss.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        scale: factor of all cosines.
        image, text: names of the two embeddings.
    """

    name = "affinity"
    compares_rows = True

    def __init__(
        self, teacher: str | None = None, scale: float = 50.0, image: str = "image", text: str = "text"
    ) -> None:
        super().__init__()
        self.teacher = teacher
        if scale <= 0:
            raise ConfigError(f"affinity.scale must be positive, found {scale}")
        self.scale, self.image, self.text = scale, image, text

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `affinity_mimicking` of the two models' embeddings, `[B]`."""
        return affinity_mimicking(*self.both(student, teacher, self.image, self.text), self.scale)
