"""Contrastive learning across the models: the student's image against the teacher's texts.

Shapes: B rows of this process, N rows of all processes, D width of the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES
from .embedding_pair import EmbeddingObjective, TwoEmbeddings
from .embeddings import LogitScale, Scale, ScaleSource, everywhere, own_columns, product, unit
from .equal_rows import equal_rows, matching_loss
from .projection import Heads, PlainProjection, check_widths

if TYPE_CHECKING:
    from ..model import Batch


def interactive_contrastive(
    student: TwoEmbeddings, teacher: TwoEmbeddings, scale: Scale, equal_BN: Tensor | None = None
) -> Tensor:
    """ICL of CLIP-KD (Yang et al., CVPR 2024, arXiv 2307.12732), one value a row:

        L_b = 1/2 [ -log softmax_j(scale v_b . W_j)_b - log softmax_j(scale t_b . V_j)_b ]

    v, t are the student's image and text, V, W the teacher's, all of length 1; j runs over all processes. The released
    code of CLIP-KD uses the logarithm of the scale, 2.66, in place of the scale; that is `scale=2.66`.

    Args:
        student, teacher: (image, text) embeddings `[B, D]` of the same width; they are normalised here.
        scale: positive factor of the cosines.
        equal_BN: which rows of all processes are the same thing as each own row, `[B, N]`, over which the target is
            spread, see `matching_loss`; None: each is its own.

    Returns:
        `[B]`.

    Raises:
        ModelError: the shapes differ.
    """
    losses = []
    for mine, theirs in ((student[0], teacher[1]), (student[1], teacher[0])):
        check_widths(mine, theirs, "interactive_contrastive")
        keys_ND, first = everywhere(unit(theirs))
        logits_BN = scale * product(unit(mine), keys_ND.T)
        targets_B = own_columns(mine.shape[0], first, mine.device)
        losses.append(matching_loss(logits_BN, targets_B, equal_BN))
    return (losses[0] + losses[1]) / 2


@OBJECTIVES.register("interactive_contrastive")
class InteractiveContrastive(EmbeddingObjective):
    """The student's image finds the teacher's text and the other way round, see `interactive_contrastive`.

    Student and teacher give the embeddings `image` and `text` (or those named here); with different widths, heads map
    the student's to the teacher's.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        scale: `learned` (a parameter of this objective), `model` (the student's own) or a number.
        initial_scale, max_scale: first and largest value of a learned scale.
        projection: `auto` (a linear head where the widths differ), `none`, `linear` or `mlp`, see `Heads`.
        same: field of integers, such as `concept`: rows with the same value are no negatives of each other; each is a
            partner of all of them.
        image, text: names of the two embeddings.
        shapes: widths of all embeddings.
    """

    name = "interactive_contrastive"
    compares_rows = True

    def __init__(
        self,
        teacher: str | None = None,
        scale: ScaleSource = "learned",
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
        self.scale = LogitScale(scale, initial_scale, max_scale)
        self.heads = Heads(projection, shapes, teacher, (image, text), self.name)
        self.image, self.text = image, text

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `interactive_contrastive` of the two models' embeddings, `[B]`."""
        image, text = (self.heads.match(name, m, student, teacher) for m in (self.image, self.text))
        scale, equal_BN = self.scale(student, self.name), equal_rows(batch, self.same, self.name)
        return interactive_contrastive((image[0], text[0]), (image[1], text[1]), scale, equal_BN)
