"""Matching a teacher's embedding number by number.

Shapes: B batch, S width of the student, D width of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..signals import Signals, full_precision
from ..teachers.normalize import Normalisation, TargetNorm
from .base import OBJECTIVES
from .embedding_pair import EmbeddingObjective, check_rows
from .embeddings import embedding, unit
from .projection import Heads, Projection, check_widths, widths_by_teacher

if TYPE_CHECKING:
    from ..model import Batch

Distance = Literal["cosine", "smooth_l1", "mse"]
DISTANCES = ("cosine", "smooth_l1", "mse")


def embedding_distance(
    student_BD: Tensor, teacher_BD: Tensor, distance: Distance = "cosine", reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Distance of two embeddings of every row.

        cosine: 1 - s . y / (|s| |y|)
        mse: (s_d - y_d)^2
        smooth_l1: (s_d - y_d)^2 / 2 where |s_d - y_d| < 1, else |s_d - y_d| - 1/2

    Args:
        student_BD, teacher_BD: embeddings `[B, D]` of the same width.
        distance: `cosine`, `smooth_l1` or `mse`.
        reduction: mean or sum over d, of `smooth_l1` and `mse`; published weights differ by a factor D for this reason.

    Returns:
        `[B]`.

    Raises:
        ModelError: the shapes differ.
    """
    check_widths(student_BD, teacher_BD, "embedding_kd")
    student, teacher = full_precision(student_BD), full_precision(teacher_BD)
    if distance == "cosine":
        return 1 - (unit(student) * unit(teacher)).sum(dim=1)
    function = F.smooth_l1_loss if distance == "smooth_l1" else F.mse_loss
    losses_BD = function(student, teacher, reduction="none")
    return losses_BD.mean(dim=1) if reduction == "mean" else losses_BD.sum(dim=1)


@OBJECTIVES.register("embedding_kd")
class EmbeddingKD(EmbeddingObjective):
    """The student's embedding becomes the teacher's, through a head where widths differ.

    Published settings: FD of CLIP-KD (arXiv 2307.12732) is `distances: {mse: 1}, unit: true` on image and text; UNIC
    (arXiv 2408.05088) `{cosine: 0.5, smooth_l1: 0.5}` with `normalise: ema`; Theia (arXiv 2407.20179)
    `{cosine: 0.9, smooth_l1: 0.1}` with `normalise: zscore`; the summary of AM-RADIO (arXiv 2312.06709) `{cosine: 1}`.

    Student and teacher give the embeddings named here; the losses of several are averaged.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        modalities: names of the embeddings.
        distances: weight of each distance, of `cosine`, `smooth_l1` and `mse`.
        unit: bring both embeddings to length 1 first (after head and normalisation).
        reduction: `mean` or `sum` over the channels.
        projection: `none`, `linear` or `mlp` heads, one for each teacher and modality.
        student_dim: width of the student's embedding, for heads.
        teacher_dim: width of the teachers' embeddings, for heads and normalisation; by teacher where there are several.
        hidden_dim: width of the hidden layer of `mlp`; None: the teacher's.
        normalise: normalisation of the targets, `none`, `zscore`, `ema` or `phi_s`, see `TargetNorm`.
        freeze_after: batches after which the statistics of the targets stay.
        refresh_every: batches between two rotations of `phi_s`.
    """

    name = "embedding_kd"

    def __init__(
        self,
        teacher: str | None = None,
        modalities: Sequence[str] = ("image",),
        distances: dict[str, float] | None = None,
        unit: bool = False,
        reduction: Literal["mean", "sum"] = "mean",
        projection: Projection = "none",
        student_dim: int | None = None,
        teacher_dim: int | dict[str, int] | None = None,
        hidden_dim: int | None = None,
        normalise: Normalisation = "none",
        freeze_after: int = 3000,
        refresh_every: int = 100,
    ) -> None:
        super().__init__()
        self.teacher, self.modalities = teacher, list(modalities)
        self.distances = {"cosine": 1.0} if distances is None else dict(distances)
        self.unit, self.reduction = unit, reduction
        if not self.modalities:
            raise ConfigError("embedding_kd.modalities is empty; name at least one embedding, such as 'image'")
        if not self.distances or set(self.distances) - set(DISTANCES):
            raise ConfigError(f"embedding_kd.distances takes {', '.join(DISTANCES)}; found {self.distances}")
        widths = widths_by_teacher(teacher, teacher_dim, self.name)
        if normalise != "none" and not widths:
            raise ConfigError(f"embedding_kd.normalise '{normalise}' needs teacher_dim, the width of the targets")
        self.heads = Heads(projection, student_dim, widths, self.modalities, self.name, hidden_dim)
        # Statistics are summed over all processes, so every process has to see every teacher in every batch.
        self.compares_rows = normalise != "none"
        self.norms = nn.ModuleDict(
            {
                _key(name, modality): TargetNorm(normalise, dim, freeze_after, refresh_every)
                for name, dim in (widths.items() if normalise != "none" else ())
                for modality in self.modalities
            }
        )

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the weighted sum of the distances, `[B]`, averaged over the modalities."""
        losses = []
        for modality in self.modalities:
            mine = embedding(student, modality, "embedding_kd (student)")
            target = embedding(teacher, modality, "embedding_kd (teacher)")
            check_rows(mine, target, self.name)
            mine, target = self.heads(name, modality, mine), self.target(name, modality, target)
            if self.unit:
                mine, target = unit(mine), unit(target)
            losses += [
                weight * embedding_distance(mine, target, distance, self.reduction)  # type: ignore[arg-type]
                for distance, weight in self.distances.items()
            ]
        return torch.stack(losses).sum(dim=0) / len(self.modalities)

    def target(self, name: str, modality: str, target_BD: Tensor) -> Tensor:
        """Return a teacher's target as the student sees it; in training it counts in the statistics.

        Raises:
            ModelError: there are no statistics of this teacher.
        """
        if not self.norms:
            return target_BD
        key = _key(name, modality)
        if key not in self.norms:
            known = ", ".join(self.norms)
            raise ModelError(f"embedding_kd has no statistics of teacher '{name}' and '{modality}'; there are: {known}")
        target: Tensor = self.norms[key](target_BD.detach(), update=self.training and torch.is_grad_enabled())
        return target

    def raw_head(self, teacher: str, modality: str) -> nn.Module:
        """Return the head that gives the teacher's embedding as it was before the normalisation.

        Raises:
            ModelError: there is no head for this teacher and modality.
        """
        head = self.heads.head(teacher, modality)
        norm = self.norms[_key(teacher, modality)] if self.norms else None
        if not isinstance(norm, TargetNorm):
            return head
        if isinstance(head, nn.Linear):
            return norm.fold(head)
        assert isinstance(head, nn.Sequential)
        last = head[-1]
        assert isinstance(last, nn.Linear)
        return nn.Sequential(*list(head)[:-1], norm.fold(last))


def _key(teacher: str, modality: str) -> str:
    """Return a key of a ModuleDict, which allows no dots."""
    return f"{teacher}:{modality}".replace(".", ":")
