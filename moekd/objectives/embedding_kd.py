"""Matching a teacher's embedding number by number.

Shapes: B batch, S width of the student, D width of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import batch_mean
from ..errors import ConfigError, ModelError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals, full_precision
from ..teachers.normalize import Normalisation, TargetNorm
from .base import OBJECTIVES
from .embedding_pair import EmbeddingObjective
from .embeddings import unit
from .ladder import Ladder
from .projection import Heads, Projection, check_widths, head_key

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

    Student and teacher give the embeddings named here; the losses of several are averaged. With `projection: auto`
    there is a linear head where the widths differ, and everywhere if the targets are normalised, so that
    `raw_head` can undo it.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        modalities: names of the embeddings, or `common`: those that the student and each teacher both give, so that
            teachers of texts alone and of pictures alone can be in one pool.
        distances: weight of each distance, of `cosine`, `smooth_l1` and `mse`.
        unit: bring both embeddings to length 1 first (after head and normalisation).
        reduction: `mean` or `sum` over the channels.
        log_scale: a number s: the loss is log(1 + m / s) with the mean m over the batch, which tames large distances
            (Li et al., ICCV 2023, arXiv 2307.03135: `{mse: 1}`, `sum` and s = 10, as the alternative to `unit`).
        projection: `auto`, `none`, `linear`, `mlp` or `ladder` heads, one for each teacher and modality, see `Heads`.
        taps: taps of the student that `ladder` reads, by modality where there are several.
        hidden_dim: width of the hidden layer of `mlp` and `ladder`; None: the teacher's.
        normalise: normalisation of the targets, `none`, `zscore`, `ema` or `phi_s`, see `TargetNorm`.
        freeze_after: batches after which the statistics of the targets stay.
        refresh_every: batches between two rotations of `phi_s`.
        shapes: widths of all embeddings.
    """

    name = "embedding_kd"

    def __init__(
        self,
        teacher: str | None = None,
        modalities: Sequence[str] | Literal["common"] = ("image",),
        distances: dict[str, float] | None = None,
        unit: bool = False,
        reduction: Literal["mean", "sum"] = "mean",
        log_scale: float | None = None,
        projection: Projection = "auto",
        taps: Sequence[str] | dict[str, list[str]] | None = None,
        hidden_dim: int | None = None,
        normalise: Normalisation = "none",
        freeze_after: int = 3000,
        refresh_every: int = 100,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.teacher, self.common = teacher, modalities == "common"
        self.modalities = _common(shapes, teacher) if modalities == "common" else list(modalities)
        self.distances = {"cosine": 1.0} if distances is None else dict(distances)
        self.unit, self.reduction, self.log_scale = unit, reduction, log_scale
        if not self.modalities:
            raise ConfigError("embedding_kd.modalities is empty; name at least one embedding, such as 'image'")
        if not self.distances or set(self.distances) - set(DISTANCES):
            raise ConfigError(f"embedding_kd.distances takes {', '.join(DISTANCES)}; found {self.distances}")
        always = normalise != "none"
        self.heads = Heads(projection, shapes, teacher, self.modalities, self.name, hidden_dim, taps, always)
        if always and not self.heads.widths:
            raise ConfigError(f"embedding_kd.normalise '{normalise}': the targets' widths are not known: give 'shapes'")
        # Statistics are summed over all processes, so every process has to see every teacher in every batch.
        self.compares_rows = always or log_scale is not None
        self.norms = nn.ModuleDict(
            {
                head_key(name, modality): TargetNorm(normalise, dim, freeze_after, refresh_every)
                for (name, modality), (_, dim) in (self.heads.widths.items() if always else ())
            }
        )

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the weighted sum of the distances, `[B]`, averaged over the modalities."""
        losses = []
        modalities = [m for m in self.modalities if m in teacher.embeddings] if self.common else self.modalities
        if not modalities:
            raise ModelError(
                f"embedding_kd.modalities 'common': teacher '{name}' gives {', '.join(teacher.embeddings) or 'none'}, "
                f"the student {', '.join(student.embeddings) or 'none'}"
            )
        for modality in modalities:
            mine, target = self.heads.match(name, modality, student, teacher)
            target = self.target(name, modality, target)
            if self.unit:
                mine, target = unit(mine), unit(target)
            losses += [
                weight * embedding_distance(mine, target, distance, self.reduction)  # type: ignore[arg-type]
                for distance, weight in self.distances.items()
            ]
        loss_B = torch.stack(losses).sum(dim=0) / len(modalities)
        if self.log_scale is None:
            return loss_B
        return torch.log1p(batch_mean(loss_B[:, None]) / self.log_scale).expand(len(loss_B))

    def target(self, name: str, modality: str, target_BD: Tensor) -> Tensor:
        """Return a teacher's target as the student sees it; in training it counts in the statistics.

        Raises:
            ModelError: there are no statistics of this teacher.
        """
        if not self.norms:
            return target_BD
        key = head_key(name, modality)
        if key not in self.norms:
            known = ", ".join(self.norms)
            raise ModelError(f"embedding_kd has no statistics of teacher '{name}' and '{modality}'; there are: {known}")
        target: Tensor = self.norms[key](target_BD.detach(), update=self.training and torch.is_grad_enabled())
        return target

    def raw_head(self, teacher: str, modality: str) -> nn.Module:
        """Return the head that gives the teacher's embedding as it was before the normalisation.

        It maps the student's embedding, or (`ladder`) its signals.

        Raises:
            ModelError: there is no head for this teacher and modality.
        """
        head = self.heads.head(teacher, modality)
        norm = self.norms[head_key(teacher, modality)] if self.norms else None
        return folded(head, norm) if isinstance(norm, TargetNorm) else head


def folded(head: nn.Module, norm: TargetNorm) -> nn.Module:
    """Return the head that gives raw targets where `head` (linear, `mlp` or `Ladder`) gives normalised ones."""
    if isinstance(head, nn.Linear):
        return norm.fold(head)
    if isinstance(head, Ladder):
        copy = deepcopy(head)
        copy.top = _folded_mlp(head.top, norm)
        copy.rungs = nn.ModuleList(_folded_mlp(rung, norm, add_mean=False) for rung in head.rungs)
        return copy
    return _folded_mlp(head, norm)


def _folded_mlp(head: nn.Module, norm: TargetNorm, add_mean: bool = True) -> nn.Sequential:
    assert isinstance(head, nn.Sequential)
    last = head[-1]
    assert isinstance(last, nn.Linear)
    end = norm.fold(last)
    if not add_mean:
        with torch.no_grad():
            end.bias.sub_(norm.inverse(torch.zeros_like(norm.mean)).to(end.bias))
    return nn.Sequential(*list(head)[:-1], end)


def _common(shapes: Shapes | None, teacher: str | None) -> list[str]:
    """Return the embeddings that the student and any of the teachers give.

    Raises:
        ConfigError: there is none, for one of the teachers.
    """
    if shapes is None:
        raise ConfigError("embedding_kd.modalities 'common': what the models give is not known: give 'shapes'")
    mine = shapes.embeddings.get("student", {})
    wanted = teacher and teacher.partition("/")[0]
    theirs = {n: w for n, w in shapes.embeddings.items() if n != "student" and wanted in (None, n)}
    if alone := [name for name, widths in theirs.items() if not set(widths) & set(mine)]:
        raise ConfigError(
            f"embedding_kd.modalities 'common': teacher '{alone[0]}' gives {', '.join(theirs[alone[0]]) or 'none'}, "
            f"the student {', '.join(mine) or 'none'}; name the 'teacher' of each objective"
        )
    return [modality for modality in mine if any(modality in widths for widths in theirs.values())]
