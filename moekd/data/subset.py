"""Some rows of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .dataset import Batch, Split, WrappedSplit
from .dense import DenseLabels
from .few_labels import FewLabels


class Rows(WrappedSplit):
    """The rows `[K]` of a split, in their order.

    Args:
        split: the split.
        rows: indices, each once.
        name: name of the part, for messages.
    """

    def __init__(self, split: Split, rows: NDArray[np.int64], name: str) -> None:
        super().__init__(split)
        self.name, self.part = name, rows
        self.ids = split.ids[rows]
        labels = split.labels
        self.labels = labels.at(rows) if isinstance(labels, DenseLabels) else None if labels is None else labels[rows]
        self.table = {key: [column[row] for row in rows] for key, column in split.table.items()}
        self.blocks = None if split.blocks is None else split.blocks[rows]
        self.batching = None

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read rows of the part."""
        return self.split.read([int(self.part[row]) for row in rows])


def labelled_part(split: Split) -> Split:
    """Return the rows of a few-label split that have a label; other splits come back as they are."""
    if not isinstance(split, FewLabels):
        return split
    return Rows(split, np.flatnonzero(split.mask), f"{split.name}, labelled")
