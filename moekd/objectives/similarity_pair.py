"""What the objectives on a batch's image-text similarities share: pairs that do not count, and mixtures of teachers.

Shapes: B rows of this process, N rows of all processes, T teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError
from ..routers.mixing import mixture
from ..routers.routing import Mix
from ..signals import Signals
from .embedding_pair import EmbeddingObjective, TeacherScale, teacher_scale
from .embeddings import LogitScale, Pairs, similarities
from .equal_rows import equal_rows, hide

if TYPE_CHECKING:
    from ..model import Batch

#: Scores `[B, N]` of one model, one tensor for each direction that is compared.
Scores = tuple[Tensor, ...]


class SimilarityObjective(EmbeddingObjective):
    """A pairwise objective on the scaled similarities of images and texts; the mean over its directions.

    With `mix` the teachers make one target, with equal weights; through a router with combine `target`, with the
    router's weights of each row (for a text, those of its own row). Each direction is mixed on its own: the
    probabilities of the texts of an image are no transpose of those of the images of a text.
    """

    compares_rows = True
    mixes_targets = True
    #: Field of integers: rows with the same value are left out of each other's comparison.
    same: str | None = None
    image: str = "image"
    text: str = "text"
    student_scale: LogitScale
    teacher_scale: TeacherScale

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the loss to one teacher, `[B]`."""
        return self.mixed(student, {name: teacher}, None, "probs", batch)

    def mixed(
        self, student: Signals, teachers: Mapping[str, Signals], weights_BT: Tensor | None, mix: Mix, batch: Batch
    ) -> Tensor:
        """Return the loss to the mixture of the teachers, `[B]`.

        Args:
            student: what the student says.
            teachers: what the teachers say, in the order of the axis T.
            weights_BT: weights that sum to 1 over T; None: equal ones.
            mix: see `mixture`.
            batch: the batch.
        """
        targets: list[Scores] = []
        for name, teacher in teachers.items():
            mine, theirs = self.both(student, teacher, self.image, self.text)
            targets.append(self.teacher_scores(name, teacher, similarities(*theirs)))
        pairs = similarities(*mine)
        equal_BN = equal_rows(batch, self.same, self.name)
        hidden_BN = None if equal_BN is None else equal_BN & ~pairs.partners
        losses = []
        for direction, student_BN in enumerate(self.student_scores(student, pairs)):
            hidden = [hide(target[direction], hidden_BN) for target in targets]
            target_BN = hidden[0] if len(hidden) == 1 else self.mixture(torch.stack(hidden, dim=1), weights_BT, mix)
            losses.append(self.compare(hide(student_BN, hidden_BN), target_BN))
        return torch.stack(losses).mean(dim=0)

    def student_scores(self, student: Signals, pairs: Pairs) -> Scores:
        """Return the student's scores of each direction: scaled similarities, texts of images and images of texts."""
        scale = self.student_scale(student, self.name)
        return scale * pairs.image_to_text, scale * pairs.text_to_image

    def teacher_scores(self, name: str, teacher: Signals, pairs: Pairs) -> Scores:
        """Return the scores of the teacher called `name`, for the same directions."""
        scale = teacher_scale(self.teacher_scale, name, teacher, self.name)
        return scale * pairs.image_to_text, scale * pairs.text_to_image

    def compare(self, student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
        """Return the loss of every row of one direction, `[B]`."""
        raise NotImplementedError

    def mixture(self, scores_BTN: Tensor, weights_BT: Tensor | None, mix: Mix) -> Tensor:
        """Return the scores of the mixture of the teachers' softmax distributions over each row, `[B, N]`."""
        return mixture(scores_BTN, equal_weights(scores_BTN, weights_BT), mix)


def equal_weights(scores_BTN: Tensor, weights_BT: Tensor | None) -> Tensor:
    """Return the weights, 1 / T where there are none, `[B, T]`.

    Raises:
        ModelError: the weights do not fit the scores.
    """
    rows, teachers = scores_BTN.shape[:2]
    if weights_BT is None:
        return scores_BTN.new_full((rows, teachers), 1 / teachers)
    if weights_BT.shape != (rows, teachers):
        raise ModelError(f"weights {tuple(weights_BT.shape)} do not fit scores of {rows} rows and {teachers} teachers")
    return weights_BT
