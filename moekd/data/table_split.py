"""A split whose rows are decoded from the columns of a table when they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .dataset import Batch, Ids, Split
from .fields import Field
from .files_labels import Labels
from .tables import Table, usable


class TableSplit(Split):
    """Some rows of a table, decoded when they are read.

    Args:
        name: name of the split.
        ids: sample ids `[N]`.
        labels: class indices `[N]`, -1 is unlabelled; None: no labels.
        inputs: the fields, by name.
        columns: the column of each field.
        examples: one decoded value of each field, which fixes its shape.
        table: where the rows are.
        rows: rows of the table `[N]`.
    """

    def __init__(
        self,
        name: str,
        ids: Ids,
        labels: Labels | None,
        inputs: Mapping[str, Field],
        columns: Mapping[str, str],
        examples: Mapping[str, NDArray[Any]],
        table: Table,
        rows: Ids,
    ) -> None:
        specs = {
            key: spec for field, kind in inputs.items() for key, spec in kind.specs(field, examples[field]).items()
        }
        super().__init__(name, ids, labels, specs, blocks=None if table.blocks is None else table.blocks[rows])
        self.inputs, self.columns, self.examples = inputs, columns, examples
        self.source, self.rows = table, rows

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read and decode rows; those with a value that can't be decoded are returned as bad."""
        index = np.asarray(rows, dtype=np.int64)
        records = self.source.read(self.rows[index], list(dict.fromkeys(self.columns.values())))
        decoded: dict[str, list[NDArray[Any] | None]] = {}
        bad: dict[int, str] = {}
        for name, field in self.inputs.items():
            values = decoded[name] = []
            for position, value in enumerate(records[self.columns[name]]):
                try:
                    values.append(self._decode(name, field, value))
                except DataError as error:
                    values.append(None)
                    bad.setdefault(position, f"field '{name}': {error}")
        good = np.array([position for position in range(len(index)) if position not in bad], dtype=np.int64)
        batch = self._frame(index[good])
        for name, field in self.inputs.items():
            example = self.examples[name]
            stacked = np.empty((len(good), *example.shape), dtype=example.dtype)
            for place, position in enumerate(good):
                stacked[place] = decoded[name][position]
            batch.update(field.transform(name, stacked))
        return batch, dict(sorted(bad.items()))

    def _decode(self, name: str, field: Field, value: Any) -> NDArray[Any]:
        array, example = field.decode(usable(value), self.source.folder), self.examples[name]
        if array.shape != example.shape:
            raise DataError(f"shape {array.shape} differs from that of the first row, {example.shape}")
        return array

    def describe(self, sample_id: int) -> str:
        """Return file, row and the paths in that row."""
        row = int(self.rows[self.row_of(sample_id)])
        paths = [self.columns[name] for name, field in self.inputs.items() if field.holds_paths]
        return self.source.describe(row, list(dict.fromkeys(paths)))
