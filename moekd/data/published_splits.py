"""The 20 random splits of MST-Distill's benchmark (arXiv 2507.07015): 60/20/20 by position in a permutation of all
rows, whatever the owners' own split.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .avmnist import permutation_of_group
from .dataset import Ids

GROUPS = 20


def rows_of_group(total: int, group: int) -> dict[str, Ids]:
    """Return the rows of `train`, `val` and `test` in the split `group`, in the published order."""
    order = permutation_of_group(total, group)
    first, second = int(0.6 * total), int(0.8 * total)
    return {"train": order[:first], "val": order[first:second], "test": order[second:]}


def column_range(array: NDArray[Any], axis: int | None = None, chunk: int = 256) -> tuple[list[float], list[float]]:
    """Return minimum and maximum of an array `[N, ...]` that need not fit into memory, over all rows.

    Args:
        array: in memory or memory-mapped.
        axis: axis that is kept (1: per channel); None: of everything.
        chunk: rows read at a time.
    """
    lows, highs = [], []
    for start in range(0, len(array), chunk):
        part = np.asarray(array[start : start + chunk], dtype=np.float32)
        others = tuple(i for i in range(part.ndim) if i != axis)
        lows.append(np.atleast_1d(part.min(axis=others)))
        highs.append(np.atleast_1d(part.max(axis=others)))
    return np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()
