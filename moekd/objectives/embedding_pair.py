"""What the objectives between a student's and a teacher's embeddings share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import ConfigError, ModelError, did_you_mean
from ..signals import Signals
from .base import PairwiseObjective
from .embeddings import Scale, embedding, model_scale

if TYPE_CHECKING:
    from ..model import Batch

#: The scale of the teachers: `model` (each one's own, its head `logit_scale`), a number, or a number by teacher.
TeacherScale = str | float | dict[str, float]
#: Image and text embeddings `[B, D]` of one model.
TwoEmbeddings = tuple[Tensor, Tensor]


class EmbeddingObjective(PairwiseObjective):
    """A pairwise objective on embeddings."""

    logits_only = False
    reads_logits, reads_embeddings = False, True

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the loss to a teacher without a name, `[B]`; nothing that is kept by teacher can be used then."""
        return self.pair_with("", student, teacher, batch)

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the loss of every instance to the teacher called `name`, `[B]`."""
        raise NotImplementedError

    def both(self, student: Signals, teacher: Signals, image: str, text: str) -> tuple[TwoEmbeddings, TwoEmbeddings]:
        """Return the (image, text) embeddings of student and teacher.

        Raises:
            ModelError: one of them is missing, or the numbers of rows differ.
        """
        mine, theirs = (
            (embedding(signals, image, f"{self.name} ({who})"), embedding(signals, text, f"{self.name} ({who})"))
            for signals, who in ((student, "student"), (teacher, "teacher"))
        )
        check_rows(mine[0], theirs[0], self.name)
        return mine, theirs


def check_rows(student: Tensor, teacher: Tensor, who: str) -> None:
    """Refuse a student and a teacher with different numbers of rows.

    Raises:
        ModelError: they differ; the message names both shapes.
    """
    if student.shape[0] != teacher.shape[0]:
        raise ModelError(
            f"{who}: the student's embeddings {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} have "
            "different numbers of rows"
        )


def check_teacher_scale(scale: TeacherScale, where: str) -> None:
    """Refuse scales that are not positive.

    Raises:
        ConfigError: a word that is not `model`, or a number that is not positive.
    """
    values = list(scale.values()) if isinstance(scale, dict) else [scale]
    for value in values:
        if value != "model" and (isinstance(value, str) or not 0 < value < float("inf")):
            raise ConfigError(f"{where}.teacher_scale must be 'model' or positive numbers, found {scale!r}")


def teacher_scale(scale: TeacherScale, name: str, teacher: Signals, who: str) -> Scale:
    """Return the scale of the teacher called `name`.

    Raises:
        ConfigError: scales are given by teacher, and this one has none.
        ModelError: `model`, and the teacher gives no scale.
    """
    if isinstance(scale, dict):
        if name not in scale:
            hint = did_you_mean(name, scale) or f"; teachers with a scale: {', '.join(scale) or 'none'}"
            raise ConfigError(f"{who}.teacher_scale has no number for teacher '{name}'{hint}")
        return scale[name]
    return model_scale(teacher, f"{who} (teacher)") if isinstance(scale, str) else scale
