"""The contrastive loss on what student and teacher give together.

Shapes: B rows of this process, N rows of all processes, S width of the student, D width of the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES
from .contrastive import softmax_contrastive
from .embedding_pair import EmbeddingObjective
from .embeddings import LogitScale, ScaleSource, embedding, unit
from .equal_rows import equal_rows
from .projection import embedding_widths, head_key

if TYPE_CHECKING:
    from ..model import Batch


@OBJECTIVES.register("augmented_contrastive")
class AugmentedContrastive(EmbeddingObjective):
    """AFD of CLIP-KD (Yang et al., CVPR 2024, arXiv 2307.12732): a linear layer brings the embeddings of student and
    teacher, side by side, to the student's width, and images and texts find each other there:

        L = CLIP(A_image [v; V], A_text [t; W])

    with `softmax_contrastive` for CLIP; v, t are the student's image and text, V, W the teacher's, all of length 1.
    There is a layer for each teacher and modality; they are thrown away at export. The teacher's embedding can solve
    the task alone, so that little may be left to learn for the student: in CLIP-KD it was the weakest of six losses.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        scale: `learned` (a parameter of this objective), `model` (the student's own) or a number.
        initial_scale, max_scale: first and largest value of a learned scale.
        same: field of integers, such as `concept`: rows with the same value are no negatives of each other.
        image, text: names of the two embeddings.
        shapes: widths of all embeddings.
    """

    name = "augmented_contrastive"
    compares_rows = True

    def __init__(
        self,
        teacher: str | None = None,
        scale: ScaleSource = "learned",
        initial_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        same: str | None = None,
        image: str = "image",
        text: str = "text",
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.teacher, self.same, self.image, self.text = teacher, same, image, text
        self.scale = LogitScale(scale, initial_scale, max_scale)
        widths = embedding_widths(shapes, teacher, (image, text), self.name)
        if not widths:
            raise ConfigError("augmented_contrastive: the widths of the embeddings are not known: give 'shapes'")
        self.layers = nn.ModuleDict(
            {head_key(*key): nn.Linear(mine + theirs, mine) for key, (mine, theirs) in widths.items()}
        )

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the contrastive loss of the joined embeddings, `[B]`."""
        image, text = (self.joined(name, modality, student, teacher) for modality in (self.image, self.text))
        equal_BN = equal_rows(batch, self.same, self.name)
        return softmax_contrastive(image, text, self.scale(student, self.name), equal_BN)

    def joined(self, name: str, modality: str, student: Signals, teacher: Signals) -> Tensor:
        """Return the linear image of both models' embeddings, `[B, S]`.

        Raises:
            ModelError: there is no layer for this teacher.
        """
        said = (student, "student"), (teacher, "teacher")
        parts = [unit(embedding(signals, modality, f"augmented_contrastive ({who})")) for signals, who in said]
        key = head_key(name, modality)
        if key not in self.layers:
            known = ", ".join(self.layers)
            raise ModelError(f"augmented_contrastive has no layer for '{name}' and '{modality}'; layers: {known}")
        layer = self.layers[key]
        both: Tensor = layer(torch.cat(parts, dim=1).to(next(layer.parameters()).dtype))
        return both
