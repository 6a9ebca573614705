"""`files`: the user's own multimodal data, described in YAML alone.

Underneath are Hugging Face datasets, memory-mapped from disk: a table is never held in memory as a whole. Media are
decoded when a batch is read; a value that can't be decoded is a bad sample, with its file and row.
"""

from __future__ import annotations

from pathlib import Path

from .dataset import DATASETS
from .fields import Field
from .files_source import ALL, Format, open_source
from .table_dataset import TableDataset, named_tables
from .tables import Table


@DATASETS.register("files")
class Files(TableDataset):
    """Tables (parquet, arrow, json, csv) with media beside them, or folders of pictures or recordings.

    Args:
        path: file, glob or folder; with `split` as files, the folder to which these are relative.
        fields: the batch fields, by name.
        label: column with the class: integers or texts. Empty values in train are unlabelled rows. Folders of media
            have the column "label" with the names of their sub-folders. None: the data have no labels.
        split: column that says train, val, test (or test_...) for each row; or a mapping with a file name or a fraction
            for each split, and `seed` for the fractions (drawn from the train rows, class by class); None takes the
            sub-folders train, val, test of the source.
        format: format of the files; "auto" goes by their suffix.
        classes: class names in order; None sorts the values of the label column.
        streaming: read parquet in place, row group by row group, instead of through a memory-mapped copy in the cache
            of Hugging Face datasets. Batches are then shuffled within windows of 4 row groups.
        cache_dir: folder of the memory-mapped copies.
        labelled_splits: the splits that have labels (others then need no label column); None: all of them.

    Raises:
        DataError: missing columns (all of them, with the nearest names), an unreadable file, an empty split, a label
            out of range, a single class.
    """

    kind = "files"

    def __init__(
        self,
        path: str,
        fields: dict[str, Field],
        label: str | None = "label",
        split: str | dict[str, str | int | float] | None = None,
        format: Format = "auto",
        classes: list[str] | None = None,
        streaming: bool = False,
        cache_dir: str | None = None,
        labelled_splits: list[str] | None = None,
    ) -> None:
        self.format: Format = format
        self.streaming, self.cache_dir = streaming, cache_dir
        super().__init__(path, fields, label, split, classes, labelled_splits)

    def open_tables(self) -> dict[str, Table]:
        """Open the files that `split` names, or what lies at `path`."""
        tables = {}
        for name, file in named_tables(self.division).items():
            opened = open_source(str(Path(self.path) / file), self.format, self.streaming, self.cache_dir)
            tables[name] = opened.get(ALL) or opened[name]
        return tables or open_source(self.path, self.format, self.streaming, self.cache_dir)
