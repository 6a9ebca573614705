"""The task loss.

Shapes: B batch, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..registry import Injected
from ..signals import full_precision
from .base import OBJECTIVES, Loss, LossTerm, Objective, models_named
from .inputs import base_of, is_one_of, only, scores_of

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, ignore_index: int = -100) -> Tensor:
    """Cross-entropy of every instance; dense logits give the mean over the pixels that are not ignored.

    Shape:
        logits: `[B, C]` or `[B, C, H, W]`; labels: `[B]` or `[B, H, W]`; result: `[B]`.
    """
    loss = F.cross_entropy(
        full_precision(logits), labels, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
    )
    if loss.dim() == 1:
        return loss
    counted = (labels != ignore_index).flatten(1).sum(dim=1).clamp_min(1)
    return loss.flatten(1).sum(dim=1) / counted


@OBJECTIVES.register("cross_entropy")
class CrossEntropy(Objective):
    """Cross-entropy against the labels; rows without a label (few-label data), or with nothing but ignored labels, do
    not count.

    Args:
        on: who learns from the labels: `student`, `teachers` (every one), `all` (student and teachers), or a
            teacher's name.
        label_smoothing: share of the target mass spread over all classes.
        ignore_index: label value that does not count, such as the void class of a segmentation set. Pixels with a
            negative label never count.
        classes: only instances of these classes count, so that a teacher becomes a specialist; None: all.
        among: classes of the softmax: `all`, or the `base` classes where others are novel (`data.novel`), so that
            these are not pushed away while nothing shows them.
        head: head of the models that gives the scores; None: their logits.
        hidden_labels: read the labels that few-label data hide: for teachers that stand for models trained elsewhere on
            more labels than the student has.
    """

    def __init__(
        self,
        on: str | list[str] = "student",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        classes: Sequence[int] | None = None,
        hidden_labels: bool = False,
        among: Literal["all", "base"] = "all",
        head: str | None = None,
        base_classes: Injected[list[int] | None] = None,
    ) -> None:
        super().__init__()
        self.base = base_of(among, base_classes, "cross_entropy")
        self.head = head
        self.on, self.label_smoothing, self.ignore_index = on, label_smoothing, ignore_index
        self.hidden_labels = hidden_labels
        self.classes = None if classes is None else list(classes)

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return one loss a model: `{"cross_entropy/student": ...}`."""
        hidden = self.hidden_labels and "hidden_label" in step.batch
        labels = step.batch["hidden_label" if hidden else "label"]
        safe = labels.where(labels >= 0, self.ignore_index) if labels.dim() > 1 else labels
        mask = (safe != self.ignore_index).flatten(1).any(dim=1) if labels.dim() > 1 else safe != self.ignore_index
        if "labelled" in step.batch and not hidden:
            labelled = step.batch["labelled"]
            mask = mask & labelled
            safe = safe.where(labelled.reshape(-1, *[1] * (labels.dim() - 1)), labels.new_zeros(()))
        names = models_named(self.on, step.pool)
        if self.classes is not None:
            mask = mask & self._counted(labels, scores_of(step.signals(names[0]), self.head, "cross_entropy").shape[1])
        losses: dict[str, Loss] = {}
        for name in names:
            logits = scores_of(step.signals(name), self.head, "cross_entropy")
            if self.base is not None:
                logits, mask = only(logits, self.base), mask & is_one_of(labels, self.base)
                safe = safe.where(mask, int(self.base[0]))
            loss = cross_entropy(logits, safe, self.label_smoothing, self.ignore_index)
            losses[f"cross_entropy/{name}"] = LossTerm(loss, mask)
        return losses

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers that learn from the labels."""
        return [name for name in models_named(self.on, pool) if name != "student"]

    def _counted(self, labels: Tensor, num_classes: int) -> Tensor:
        assert self.classes is not None
        if labels.dim() != 1 or not all(0 <= label < num_classes for label in self.classes):
            raise ModelError(
                f"cross_entropy.classes picks instances by their one label among 0 to {num_classes - 1}; found "
                f"{self.classes} and labels {tuple(labels.shape)}"
            )
        return torch.isin(labels, torch.tensor(self.classes, device=labels.device))
