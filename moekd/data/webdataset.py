"""`webdataset`: tar files of samples, on disk or fetched one by one, read in a reproducible shuffled order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from .dataset import DATASETS
from .fetch import fetch_hub, fetch_url
from .fields import Field
from .shard_cache import ShardCache
from .shards import open_shards
from .table_dataset import TableDataset, named_tables
from .tables import Table
from .tar_table import TarTable

GIB, MIB = 2**30, 2**20


@DATASETS.register("webdataset")
class WebDataset(TableDataset):
    """Tar files in the layout of WebDataset: members with the same name and different suffixes make a sample.

    An index of each file (where its members lie) is written once, so that samples are read in any order without
    unpacking. An epoch shuffles the files, and the samples within windows of 4 files; the order is a function of
    (seed, epoch) alone, so that a run resumes in the middle of an epoch and several processes share it. See `TarTable`
    for the columns.

    Args:
        path: folder or address (https, `hf://datasets/NAME@COMMIT/FOLDER`) to which the names in `split` are relative.
        fields: the batch fields, by name.
        split: tar files of each split: names with braces (`train-{0000..0123}.tar`) or, on disk, globs; or fractions
            of the training samples; and `seed` for these.
        label: column with the class: integers or texts; None: the data have no labels.
        classes: class names in order; None sorts the values of the label column.
        labelled_splits: the splits that have labels; None: all of them.
        cache_dir: folder for remote files; None refuses them.
        cache_gb: most that remote files may take there, in GiB; those read longest ago are deleted and fetched again
            when they are needed. Five files must fit, or each sample may cost a file.
        index_dir: folder for the indexes of files on disk; None writes them beside the files.
        max_member_mb: larger members are refused, in MiB.

    Raises:
        DataError: missing files or columns, damaged, compressed or unsafe tar files, an empty split, no connection.
    """

    kind = "webdataset"

    def __init__(
        self,
        path: str,
        fields: dict[str, Field],
        split: dict[str, str | list[str] | int | float],
        label: str | None = None,
        classes: list[str] | None = None,
        labelled_splits: list[str] | None = None,
        cache_dir: str | None = None,
        cache_gb: Annotated[float, Gt(0)] = 100.0,
        index_dir: str | None = None,
        max_member_mb: Annotated[float, Gt(0)] = 256.0,
    ) -> None:
        fetch = {"https": fetch_url, "http": fetch_url, "hf": fetch_hub}
        self.cache = None if cache_dir is None else ShardCache(Path(cache_dir), int(cache_gb * GIB), fetch)
        self.index_dir, self.largest = index_dir, int(max_member_mb * MIB)
        super().__init__(path, fields, label, split, classes, labelled_splits)

    def open_tables(self) -> dict[str, Table]:
        """Open the tar files that `split` names."""
        tables: dict[str, Table] = {}
        for name, patterns in named_tables(self.division).items():
            shards = open_shards(self.path, patterns, self.cache, self.index_dir)
            tables[name] = TarTable(shards, self.largest, self.label if self.needs_label(name) else None)
        return tables
