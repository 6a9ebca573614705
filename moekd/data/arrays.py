"""Splits whose fields are arrays in memory or memory-mapped: one gather and one transform per field and batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import Batch, FieldSpec, Ids, Labels, Split


@dataclass(frozen=True)
class ArrayField:
    """One field of an `ArraySplit`.

    Attributes:
        array: `[M, ...]`, in memory or memory-mapped.
        spec: what the transformed field looks like.
        transform: `[B, ...]` array -> `[B, *spec.shape]` tensor, for a whole batch.
        index: row of `array` for each row of the split `[N]`; None when they are the same.
    """

    array: NDArray[Any]
    spec: FieldSpec
    transform: Callable[[NDArray[Any]], Tensor] = torch.from_numpy
    index: Ids | None = None

    def read(self, rows: Ids) -> Tensor:
        """Return the transformed values of some rows of the split."""
        return self.transform(self.array[rows if self.index is None else self.index[rows]])

    def at(self, index: Ids) -> ArrayField:
        """Return the same field for a split with other rows."""
        return replace(self, index=index)


@dataclass(frozen=True)
class UnitScale:
    """uint8 `[B, ...]` -> float32 in [0, 1], then `(x - mean) / std` per channel (axis 1) when these are given."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Scale a batch."""
        scaled = torch.from_numpy(values).to(torch.float32).div_(255)
        for statistics, operation in ((self.mean, scaled.sub_), (self.std, scaled.div_)):
            if statistics is not None:
                operation(torch.tensor(statistics).view(-1, *[1] * (scaled.ndim - 2)))
        return scaled


@dataclass(frozen=True)
class Standardise:
    """Numbers `[B, D]` -> float32 `(x - mean) / std` per feature."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: NDArray[Any]) -> Standardise:
        """Return the scaling by the statistics of some rows `[N, D]`; constant features are only centred."""
        numbers = torch.from_numpy(np.asarray(values, dtype=np.float64))
        std = numbers.std(dim=0, correction=0)
        return cls(numbers.mean(dim=0), torch.where(std > 0, std, 1.0))

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Scale a batch."""
        return torch.from_numpy(values.astype(np.float64)).sub_(self.mean).div_(self.std).to(torch.float32)

    def recipe(self) -> dict[str, list[float]]:
        """Return mean and standard deviation as lists."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def to_float(values: NDArray[Any]) -> Tensor:
    """Return a batch as float32."""
    return torch.from_numpy(values).to(torch.float32)


class ArraySplit(Split):
    """A split whose fields are arrays.

    Args:
        name: name of the split.
        ids: sample ids `[N]`.
        labels: `[N]` or `[N, H, W]`, or None.
        arrays: the fields by name.
        table: further columns for reports.
        names: function from row to human name; the row number by default.
    """

    def __init__(
        self,
        name: str,
        ids: Ids,
        labels: Labels | None,
        arrays: Mapping[str, ArrayField],
        table: Mapping[str, Sequence[Any]] | None = None,
        names: Callable[[int], str] | None = None,
    ) -> None:
        super().__init__(name, ids, labels, {key: field.spec for key, field in arrays.items()}, table)
        self.arrays = dict(arrays)
        self.names = names

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Gather all fields of a batch; no row of an array is unreadable."""
        index = np.asarray(rows, dtype=np.int64)
        batch = self._frame(index)
        batch.update({name: field.read(index) for name, field in self.arrays.items()})
        return batch, {}

    def describe(self, sample_id: int) -> str:
        """Return the human name of a sample."""
        row = self.row_of(sample_id)
        return f"row {row}" if self.names is None else self.names(row)
