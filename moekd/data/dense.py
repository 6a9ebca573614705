"""Labels of every pixel that stay on disk, and splits that have them.

Void pixels, which count neither in losses nor in metrics, have the label -1.

Shapes: N rows of a split, M rows of an array, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

VOID = -1


class DenseLabels:
    """Labels `[N, H, W]` of some rows of an array `[M, H, W]` that is read when it is needed.

    Args:
        array: labels, usually a memory-map of int8 or int16; -1 is void.
        index: row of `array` for each row `[N]`.
        stride: every so manieth pixel is kept, from half of it on; the result has H // stride x W // stride pixels.
        offset: added to the labels that are not void.
    """

    def __init__(self, array: NDArray[Any], index: NDArray[np.int64], stride: int = 1, offset: int = 0) -> None:
        self.array, self.index, self.stride, self.offset = array, index, stride, offset

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, H, W)`."""
        return (len(self.index), *(size // self.stride for size in self.array.shape[1:]))

    @property
    def ndim(self) -> int:
        """3."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of labels."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read the labels of some rows, `[B, H, W]`."""
        height, width = self.shape[1:]
        start, step = self.stride // 2, self.stride
        labels = self.array[self.index[rows]][:, start::step, start::step][:, :height, :width]
        read = np.ascontiguousarray(labels, dtype=np.int64)
        return np.where(read == VOID, VOID, read + self.offset) if self.offset else read

    def at(self, rows: NDArray[np.int64]) -> DenseLabels:
        """Return the labels of a part of the rows, which still are not read."""
        return DenseLabels(self.array, self.index[rows], self.stride, self.offset)
