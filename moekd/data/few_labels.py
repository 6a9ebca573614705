"""Few labels: a stratified part of the training rows keeps its label, the others take part in distillation only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from .dataset import UNLABELLED, Batch, Split, WrappedSplit
from .pairing import Pairing


def labelled_mask(labels: NDArray[np.int64], amount: int | float, seed: int = 0) -> NDArray[np.bool_]:
    """Choose the rows that keep their label, class by class.

    Each class gets a share in proportion to its size (largest remainders); when the amount is at least the number of
    classes, each class gets at least one. Rows within a class are drawn from the seed, so that with the same seed the
    rows of a class for a smaller share are among those for a larger one.

    Args:
        labels: class of each row `[N]`.
        amount: number of rows (int), or fraction of the rows (float in (0, 1]).
        seed: seed of the draw.

    Returns:
        bool `[N]`, True for rows that keep their label.

    Raises:
        DataError: amount out of range.
    """
    total = len(labels)
    count = _count(amount, total)
    classes, sizes = np.unique(labels, return_counts=True)
    least = np.ones(len(classes), dtype=np.int64) if count >= len(classes) else np.zeros(len(classes), dtype=np.int64)
    shares = count * sizes / total
    take = np.maximum(np.floor(shares).astype(np.int64), least)
    while take.sum() != count:
        step = 1 if take.sum() < count else -1
        open_classes = take < sizes if step > 0 else take > least
        gap = np.where(open_classes, (shares - take) * step, -np.inf)
        take[int(gap.argmax())] += step
    mask = np.zeros(total, dtype=bool)
    for index, (label, wanted) in enumerate(zip(classes, take, strict=True)):
        generator = np.random.default_rng([seed, index])
        mask[generator.permutation(np.flatnonzero(labels == label))[:wanted]] = True
    return mask


def _count(amount: int | float, total: int) -> int:
    if isinstance(amount, float):
        if not 0 < amount <= 1:
            raise DataError(f"labels: a fraction must lie in (0, 1], found {amount}; a count is written without a dot")
        return max(1, round(amount * total))
    if not 1 <= amount <= total:
        raise DataError(f"labels: {amount} labelled rows asked for, but the split has {total}; give 1 to {total}")
    return amount


class FewLabels(WrappedSplit):
    """A split in which some rows have no label: `label` reads -1 and `labelled` False in the batch.

    `labels` and the batch field `hidden_label` still hold all true labels: for diagnostics, for oracles that show what
    perfect knowledge would give, and for teachers that stand for models trained elsewhere on more labels.

    Args:
        split: the split.
        mask: bool `[N]`, True for rows that keep their label.
        share: of the labelled rows in every training batch; None: rows are drawn alike.
    """

    def __init__(self, split: Split, mask: NDArray[np.bool_], share: float | None = None) -> None:
        super().__init__(split)
        self.mask = mask
        if share is not None:
            self.batching = Pairing(np.flatnonzero(mask), np.flatnonzero(~mask), share)

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read rows and hide the labels of the unlabelled ones."""
        batch, bad = self.split.read(rows)
        keep = torch.from_numpy(self.mask[self.rows_of(batch["id"].numpy())])
        label = batch["hidden_label"] = batch["label"]
        shown = keep.view(-1, *[1] * (label.ndim - 1))
        batch["label"] = torch.where(shown, label, UNLABELLED)
        batch["labelled"] = keep
        return batch, bad


def with_labels(split: Split, amount: int | float | None, seed: int = 0, share: float | None = None) -> Split:
    """Return the split with only `amount` labelled rows (a count or a fraction); None keeps all labels. With a `share`
    every training batch has that share of labelled rows.

    Dense labels `[N, H, W]` are not stratified. Rows that have no label from the start count as unlabelled.

    Raises:
        DataError: the split has no labels, or the amount is out of range.
    """
    if amount is None:
        if share is not None:
            raise DataError(f"labelled_share {share} is for few labels: set `labels`, or leave it out")
        return split
    if split.labels is None:
        raise DataError(f"split '{split.name}' has no labels, so 'labels: {amount}' can't be applied")
    strata = split.labels if split.labels.ndim == 1 else np.zeros(len(split), dtype=np.int64)
    known = np.flatnonzero(strata != UNLABELLED)
    mask = np.zeros(len(split), dtype=bool)
    mask[known] = labelled_mask(strata[known], amount, seed)
    return FewLabels(split, mask, share)
