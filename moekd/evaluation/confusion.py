"""Streaming confusion matrix and the metrics that follow from it.

Shapes: B batch, C classes, H x W pixels; N counted samples (pixels for dense labels).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, NonFiniteError
from .sums import reduce_over_ranks


class ConfusionMatrix:
    """Counts (true class, predicted class) pairs on the device; nothing is read back before `compute`.

    Samples whose label is `ignore_index` are left out, and so are pixels with a negative label (void). When
    `ignore_index` is one of the classes (void, for instance class 0 of NYU-Depth-V2), a counted sample that is
    *predicted* as void is an error of its true class.

    Args:
        num_classes: C; rows and columns of the matrix.
        ignore_index: label that is not counted; inside or outside of `[0, C)`.
        parity: reproduce the published MST-Distill evaluation, whose matrix drops samples predicted as void, so that
            accuracy, recall, precision, kappa and mIoU do not see these errors (its F1 does).
        device: where the counts live; moved to the device of the first batch when not given.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        *,
        parity: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_classes < 1:
            raise DataError(f"a confusion matrix needs at least 1 class, got num_classes={num_classes}")
        self.num_classes, self.ignore_index, self.parity = num_classes, ignore_index, parity
        self.counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self.rejected = torch.zeros(2, dtype=torch.int64, device=device)

    @property
    def matrix(self) -> Tensor:
        """Counts `[C, C]`: row = label, column = prediction."""
        return self.counts.view(self.num_classes, self.num_classes)

    def update(self, logits_or_predictions: Tensor, labels: Tensor) -> None:
        """Add one batch.

        Args:
            logits_or_predictions: logits `[B, C]` or `[B, C, H, W]`, or predicted classes shaped like `labels`.
            labels: `[B]` or `[B, H, W]`, any integer dtype.

        Raises:
            DataError: shapes that do not fit. Labels outside of the classes are counted and refused by `compute`.
        """
        given, labels = logits_or_predictions, labels.long()
        if self.counts.device != given.device:
            self.counts, self.rejected = self.counts.to(given.device), self.rejected.to(given.device)
        valid = torch.ones_like(labels, dtype=torch.bool)
        if self.ignore_index is not None:
            valid = labels != self.ignore_index
        if labels.ndim > 1:
            valid = valid & (labels >= 0)
        predictions = given
        if given.ndim == labels.ndim + 1:
            if given.shape[1] != self.num_classes or given.shape[:1] + given.shape[2:] != labels.shape:
                self._misfit(given, labels)
            self.rejected[1] += (given.isnan().any(dim=1) & valid).sum()
            predictions = given.argmax(dim=1)
        elif given.shape != labels.shape or given.is_floating_point():
            self._misfit(given, labels)
        known = (labels >= 0) & (labels < self.num_classes) & (predictions >= 0) & (predictions < self.num_classes)
        self.rejected[0] += (valid & ~known).sum()
        cells = (labels * self.num_classes + predictions).clamp(0, self.counts.numel() - 1).flatten()
        self.counts.scatter_add_(0, cells, (valid & known).flatten().long())

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add the counts of another matrix with the same settings; returns itself."""
        if other._settings() != self._settings():
            raise DataError(f"can't merge confusion matrices: {self._settings()} and {other._settings()} differ")
        self.counts += other.counts.to(self.counts.device)
        self.rejected += other.rejected.to(self.counts.device)
        return self

    def reduce(self) -> ConfusionMatrix:
        """Add up the counts over all processes of `torch.distributed`, in place; returns itself."""
        reduce_over_ranks([self.counts, self.rejected])
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return settings and counts."""
        return {**self._settings(), "counts": self.counts.clone(), "rejected": self.rejected.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            DataError: the state belongs to a matrix with other settings.
        """
        found = {key: state.get(key) for key in self._settings()}
        if found != self._settings():
            raise DataError(f"state of another confusion matrix: expected {self._settings()}, found {found}")
        self.counts = state["counts"].clone().to(self.counts.device)
        self.rejected = state["rejected"].clone().to(self.counts.device)

    def compute(self) -> dict[str, Any]:
        """Return the metrics as floats, lists of C floats (NaN where undefined) and the count `n`.

        `accuracy`, `balanced_accuracy` (mean recall over classes that occur), `weighted_f1`, `kappa` (Cohen), `miou`
        (mean over classes with a non-empty union), `per_class_accuracy` (recall), `per_class_precision`,
        `per_class_n` (samples a class), `n`.

        Raises:
            DataError: nothing was counted, or labels or predictions lay outside of the classes.
            NonFiniteError: logits held NaN.
        """
        outside, not_a_number = self.rejected.tolist()
        if not_a_number:
            raise NonFiniteError(f"{not_a_number} samples have NaN logits; the model or its input is broken")
        if outside:
            raise DataError(
                f"{outside} labels or predictions lie outside of [0, {self.num_classes}); "
                f"check the number of classes, or set ignore_index (now {self.ignore_index})"
            )
        matrix = self.matrix.cpu().double()
        if not matrix.sum():
            raise DataError("no sample was counted: the split is empty or all labels are ignored")
        f1 = _weighted_f1(matrix)
        void = self.ignore_index if self.ignore_index in range(self.num_classes) else None
        if self.parity and void is not None:
            matrix[:, void] = 0
        return {**_metrics(matrix, void), "weighted_f1": f1}

    def _settings(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "ignore_index": self.ignore_index, "parity": self.parity}

    def _misfit(self, given: Tensor, labels: Tensor) -> None:
        raise DataError(
            f"predictions {tuple(given.shape)} ({given.dtype}) do not fit labels {tuple(labels.shape)}: expected "
            f"logits [B, {self.num_classes}, ...] or integer predictions shaped like the labels [B, ...]"
        )


def _weighted_f1(matrix: Tensor) -> float:
    hits, support, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    f1 = torch.where(support + predicted > 0, 2 * hits / (support + predicted), 0.0)
    return ((f1 * support).sum() / support.sum()).item()


def _metrics(matrix: Tensor, void: int | None) -> dict[str, Any]:
    """Metrics of a float64 matrix `[C, C]`; void and 0/0 are NaN for a class and left out of the means over classes."""
    hits, support, predicted, total = matrix.diagonal(), matrix.sum(1), matrix.sum(0), matrix.sum()
    recall, precision, overlap = hits / support, hits / predicted, hits / (support + predicted - hits)
    if void is not None:
        recall[void] = precision[void] = overlap[void] = torch.nan
    observed, expected = hits.sum() / total, (support * predicted).sum() / total**2
    return {
        "accuracy": observed.item(),
        "balanced_accuracy": recall.nanmean().item(),
        "kappa": ((observed - expected) / (1 - expected)).item(),
        "miou": overlap.nanmean().item(),
        "per_class_accuracy": recall.tolist(),
        "per_class_precision": precision.tolist(),
        "per_class_n": [int(count) for count in support.tolist()],
        "n": int(total.item()),
    }
