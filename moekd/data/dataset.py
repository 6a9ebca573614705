"""Data sets: named splits that give dict batches.

A batch is `dict[str, Any]`: one tensor `[B, ...]` per field, plus `"id"` int64 `[B]` (unique over all splits),
`"label"` int64 `[B]` (or dense `[B, H, W]`) and `"labelled"` bool `[B]`. Rows whose `labelled` is
False take part in distillation and not in cross-entropy; their label reads -1.

Shapes: N rows of a split, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data

from ..errors import DataError, did_you_mean
from ..registry import Registry
from .dense import DenseLabels
from .fingerprint import digest
from .pairing import Batching

Batch = dict[str, Any]
Ids = NDArray[np.int64]
Labels = NDArray[np.int64] | DenseLabels
UNLABELLED = -1


@dataclass(frozen=True)
class FieldSpec:
    """What a batch field looks like.

    Attributes:
        shape: shape of one sample, without the batch axis.
        dtype: torch dtype by name ("float32", "int64").
        modality: "image", "audio", "text", "vector", ...
    """

    shape: tuple[int, ...]
    dtype: str
    modality: str


class Split(data.Dataset[Batch]):
    """One split of a data set; a whole batch is read in one call.

    Attributes:
        random: reading a row twice gives different values (augmentation), so that nothing computed from it can be kept.
        candidates: classes among which rows are classified in evaluation; None: all.
        drops_void: pixels that are predicted as void do not count, where else they are errors; see `ConfusionMatrix`.
        batching: how shuffled batches are made up: with a fixed share of labelled rows, or as episodes; None: rows are
            drawn alike.

    Args:
        name: name of the split, for messages.
        ids: sample ids `[N]`, unique over all splits of the data set.
        labels: class labels `[N]` (-1: unlabelled), or dense `[N, H, W]` (-1: void), in memory or on disk; None when
            there are none.
        fields: the fields that `read` fills.
        table: further columns for reports, each of length N (names, groups, styles).
        blocks: block of each row `[N]`, for splits that read rows of one block much faster together (the order of an
            epoch then shuffles blocks, and rows within windows of blocks); None when any order is as good.
    """

    random: bool = False
    candidates: Ids | None = None
    drops_void: bool = False
    batching: Batching | None = None

    def __init__(
        self,
        name: str,
        ids: Ids,
        labels: Labels | None,
        fields: Mapping[str, FieldSpec],
        table: Mapping[str, Sequence[Any]] | None = None,
        blocks: Ids | None = None,
    ) -> None:
        self.name = name
        self.ids = np.asarray(ids, dtype=np.int64)
        on_disk = labels is None or isinstance(labels, DenseLabels)
        self.labels: Labels | None = labels if on_disk else np.asarray(labels, dtype=np.int64)
        self.fields = dict(fields)
        self.table = dict(table or {})
        self.blocks = blocks

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read the rows that can be read.

        Returns:
            The batch of the good rows, in order, and `{position in rows: reason}` for the bad ones.
        """
        raise NotImplementedError

    def describe(self, sample_id: int) -> str:
        """Return a human name or path of a sample."""
        return f"row {self.row_of(sample_id)}"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, rows: list[int]) -> Batch:
        batch, bad = self.read(rows)
        if bad:
            position, reason = next(iter(bad.items()))
            raise bad_sample(self, rows[position], reason)
        return batch

    def __getitem__(self, row: int) -> Batch:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of split '{self.name}' with {len(self)} rows")
        return {key: value[0] for key, value in self.__getitems__([row % len(self)]).items()}

    def row_of(self, sample_id: int) -> int:
        """Return the row that holds a sample id."""
        return int(self.rows_of(np.array([sample_id]))[0])

    def rows_of(self, sample_ids: Ids) -> Ids:
        """Return the rows that hold some sample ids `[B]`."""
        order, ids = self._lookup
        places = np.searchsorted(ids, sample_ids).clip(max=len(ids) - 1)
        missing = np.flatnonzero(ids[places] != sample_ids)
        if len(missing):
            raise DataError(f"split '{self.name}' has no sample with id {sample_ids[missing[0]]}")
        return order[places]

    @cached_property
    def _lookup(self) -> tuple[Ids, Ids]:
        order = np.argsort(self.ids, kind="stable")
        return order, self.ids[order]

    def _frame(self, rows: Ids) -> Batch:
        """Return the part of a batch that every split has: id, label, labelled."""
        batch: Batch = {"id": torch.from_numpy(self.ids[rows])}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(self.labels[rows])
            dense = self.labels.ndim > 1
            batch["labelled"] = torch.ones(len(rows), dtype=torch.bool) if dense else batch["label"] != UNLABELLED
        else:
            batch["labelled"] = torch.zeros(len(rows), dtype=torch.bool)
        return batch


class WrappedSplit(Split):
    """A split seen through another one; subclasses change what `read` returns."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.name, split.ids, split.labels, split.fields, split.table, split.blocks)
        self.drops_void, self.batching = split.drops_void, split.batching
        self.split, self.random, self.candidates = split, split.random, split.candidates

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read from the wrapped split."""
        return self.split.read(rows)

    def describe(self, sample_id: int) -> str:
        """Return the wrapped split's description."""
        return self.split.describe(sample_id)


def bad_sample(split: Split, row: int, reason: str) -> DataError:
    """Return the error for a sample that can't be used; it names split, sample id and path."""
    sample_id = int(split.ids[row])
    return DataError(f"bad sample {sample_id} in split '{split.name}' ({split.describe(sample_id)}): {reason}")


class Dataset:
    """Base of all data sets; the parameters of a subclass's `__init__` are its config options.

    Attributes:
        num_classes: number of classes C; 0 where there are neither labels nor class names.
        class_names: their names, by label.
        fields: what `Split.read` fills, by field name.
        void_class: a class that is no target and never right (class 0 of NYU-Depth-V2): it has a logit, but does not
            take part in the means over classes.
        licence: of the data, where it is known; model cards name it.
    """

    kind: ClassVar[str] = ""
    licence: ClassVar[str | None] = None
    void_class: int | None = None
    class_names: list[str]
    fields: dict[str, FieldSpec]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def splits(self) -> dict[str, Split]:
        """All splits by name ("train", "val", "test", ...), loaded on first use and checked.

        Raises:
            DataError: an empty split, a sample id that occurs twice, or a label out of range.
        """
        splits = self.load_splits()
        check_splits(splits, self.class_names)
        return splits

    def split(self, name: str) -> Split:
        """Return one split, or say which there are."""
        if name not in self.splits:
            hint = did_you_mean(name, self.splits) or f"; splits: {', '.join(self.splits)}"
            raise DataError(f"data set '{self.kind}' has no split '{name}'{hint}")
        return self.splits[name]

    def load_splits(self) -> dict[str, Split]:
        """Build the splits; called once."""
        raise NotImplementedError

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return how a raw input becomes this field ("mean", "std", ...), for the exported student's `config.json`."""
        return {}

    def identity(self) -> Any:
        """Return the JSON-able identity of the content: options and checksums of what is read."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return a sha256 (hex) that changes with the content, the options and the sample ids of the splits."""
        ids = {name: digest(split.ids) for name, split in self.splits.items()}
        return digest({"kind": self.kind, "content": self.identity(), "ids": ids})

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Make the files this data set reads; kinds that read what the user has need none."""
        raise DataError(f"data set '{cls.kind}' needs no preparation")


DATASETS: Registry[Dataset] = Registry("data set", "datasets", base=Dataset)


def check_splits(splits: Mapping[str, Split], class_names: Sequence[str]) -> None:
    """Check that splits are not empty, ids are unique and labels lie in [0, C); -1 is allowed in train (unlabelled).

    Where no split has labels, there may be no classes at all.

    Raises:
        DataError: naming the split and the sample.
    """
    labelled = any(split.labels is not None for split in splits.values())
    if len(class_names) < 2 and (labelled or class_names):
        raise DataError(f"a classification data set needs at least 2 classes, found {list(class_names)}")
    for name, split in splits.items():
        if len(split) == 0:
            raise DataError(f"split '{name}' is empty")
        if isinstance(split.labels, np.ndarray) and split.labels.ndim == 1:
            least = UNLABELLED if name == "train" else 0
            wrong = np.flatnonzero((split.labels < least) | (split.labels >= len(class_names)))
            if len(wrong):
                row = int(wrong[0])
                raise bad_sample(
                    split, row, f"label {split.labels[row]} is out of range, expected 0 to {len(class_names) - 1}"
                )
    ids = np.concatenate([split.ids for split in splits.values()])
    values, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        raise DataError(f"sample id {values[counts.argmax()]} occurs {counts.max()} times over {', '.join(splits)}")
