"""Tables of samples behind `files` and its kin: Hugging Face datasets (Arrow memory-maps), or parquet row groups."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from ..atomic import temporary_sibling
from ..errors import DataError
from .dataset import Ids
from .fingerprint import digest, file_digest
from .loader import WINDOW
from .shards import CachedShard, LocalShard, Shard, warn_if_tight

if TYPE_CHECKING:
    import datasets


class Table:
    """Rows with named columns that are read in any order.

    Args:
        files: the files it was read from, for messages and checksums.
        folder: folder to which paths in the columns are relative.
        columns: names of the columns.
        length: number of rows.
    """

    blocks: Ids | None = None

    def __init__(self, files: Sequence[Path], folder: Path, columns: Sequence[str], length: int) -> None:
        self.files, self.folder, self.columns, self.length = list(files), folder, list(columns), length

    def __len__(self) -> int:
        return self.length

    @property
    def name(self) -> str:
        """Name for messages."""
        return str(self.files[0]) if len(self.files) == 1 else f"{self.folder} ({len(self.files)} files)"

    def arrow(self, rows: Ids, columns: Sequence[str]) -> pa.Table:
        """Return some rows of some columns, in the order asked for."""
        raise NotImplementedError

    def column(self, name: str) -> list[Any]:
        """Return a whole column."""
        raise NotImplementedError

    def has_column(self, name: str) -> bool:
        """Return whether there is a column of this name."""
        return name in self.columns

    def class_names(self, name: str) -> list[str] | None:
        """Return the class names that the file itself gives for a column of labels, if it does."""
        return None

    def identity(self) -> Any:
        """Return the JSON-able identity of the content: sha256 of data files, names and sizes in folders of media."""
        return [_file_identity(file) for file in self.files]

    def describe(self, row: int, paths: Sequence[str]) -> str:
        """Return file and row, and what the columns of paths say there."""
        values = self.read(np.array([row]), paths).values() if paths else ()
        shown = [value[0].get("path") if isinstance(value[0], dict) else value[0] for value in values]
        return ", ".join([f"{self.name} row {row}", *(path for path in shown if isinstance(path, str))])

    def read(self, rows: Ids, columns: Sequence[str]) -> dict[str, list[Any]]:
        """Return some rows as Python values; lists of numbers as arrays. A value that can't be had is a `DataError`."""
        table = self.arrow(rows, columns)
        return {name: values_of(table.column(name)) for name in columns}


class MappedTable(Table):
    """A Hugging Face dataset, memory-mapped from its Arrow files."""

    def __init__(self, dataset: datasets.Dataset, files: Sequence[Path], folder: Path) -> None:
        super().__init__(files, folder, dataset.column_names, len(dataset))
        self.dataset = dataset.with_format("arrow")
        self.features = dataset.features

    def arrow(self, rows: Ids, columns: Sequence[str]) -> pa.Table:
        """Read through the memory-map."""
        return self.dataset.select_columns(list(dict.fromkeys(columns)))[rows.tolist()]

    def column(self, name: str) -> list[Any]:
        """Read one column."""
        values: list[Any] = self.dataset.select_columns([name])[:].column(name).to_pylist()
        return values

    def class_names(self, name: str) -> list[str] | None:
        """Return the names of a `ClassLabel` column."""
        names = getattr(self.features[name], "names", None)
        return None if names is None else list(names)


class StreamedTable(Table):
    """Parquet files read row group by row group, without a copy on disk; the last few row groups stay in memory.

    Args:
        shards: the files; remote ones are fetched when their rows are read.
        folder: folder to which paths in the columns are relative.
        kept: a column that will be read as a whole; with remote files it is read along with the number of rows.

    Raises:
        DataError: a file that is no parquet, or whose columns are not those of the first.
    """

    def __init__(self, shards: Sequence[Shard], folder: Path, kept: str | None = None) -> None:
        self.shards = list(shards)
        self.metadata = []
        for number, shard in enumerate(shards):
            self.metadata.append(parquet_metadata(shard))
            if kept in self._names(number) and isinstance(shard, CachedShard):
                self._column(number, str(kept))
            if self._names(number) != self._names(0):
                names = f"{', '.join(self._names(number))}; expected {', '.join(self._names(0))}"
                raise DataError(f"{shard.name}: its columns are not those of {shards[0].name}: {names}")
        warn_if_tight(self.shards, WINDOW)
        self.groups = [(f, g) for f, meta in enumerate(self.metadata) for g in range(meta.num_row_groups)]
        sizes = [self.metadata[f].row_group(g).num_rows for f, g in self.groups]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.firsts = np.cumsum([0, *(meta.num_rows for meta in self.metadata)])
        self.schema = self.metadata[0].schema.to_arrow_schema()
        files = [shard.file for shard in shards if isinstance(shard, LocalShard)]
        super().__init__(files, folder, self.schema.names, int(self.starts[-1]))
        self.blocks = np.repeat(np.arange(len(sizes)), sizes)
        self._recent: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()

    @property
    def name(self) -> str:
        """Name for messages."""
        return super().name if self.files else f"{self.shards[0].name} ({len(self.shards)} files)"

    def identity(self) -> Any:
        """Return the sha256 of files on disk, and the addresses of remote ones, which name a commit."""
        return [file_digest(s.file) if isinstance(s, LocalShard) else s.name for s in self.shards]

    def describe(self, row: int, paths: Sequence[str]) -> str:
        """Return the file, the row in it, and what the columns of paths say there."""
        number = int(np.searchsorted(self.firsts, row, side="right")) - 1
        said = super().describe(row, paths).removeprefix(f"{self.name} row {row}")
        return f"{self.shards[number].name} row {row - int(self.firsts[number])}{said}"

    def arrow(self, rows: Ids, columns: Sequence[str]) -> pa.Table:
        """Read the row groups that hold the rows."""
        group = np.searchsorted(self.starts, rows, side="right") - 1
        parts, places = [], []
        for number in np.unique(group).tolist():
            place = np.flatnonzero(group == number)
            parts.append(self._group(number, columns).take(rows[place] - self.starts[number]))
            places.append(place)
        if not parts:
            return self.schema.empty_table().select(columns)
        return pa.concat_tables(parts).take(np.argsort(np.concatenate(places)))

    def column(self, name: str) -> list[Any]:
        """Read one column of all files."""
        return [value for number in range(len(self.shards)) for value in self._column(number, name)]

    def class_names(self, name: str) -> list[str] | None:
        """Return the names of a `ClassLabel` column, as Hugging Face datasets notes them in parquet files."""
        import datasets

        feature = datasets.Features.from_arrow_schema(self.schema).get(name)
        names = getattr(feature, "names", None)
        return None if names is None else list(names)

    def _names(self, number: int) -> list[str]:
        names: list[str] = self.metadata[number].schema.to_arrow_schema().names
        return names

    def _column(self, number: int, name: str) -> list[Any]:
        """Return a column of one file; those of remote files are kept."""
        shard, note = self.shards[number], f"column-{digest(name)[:12]}"
        remote = isinstance(shard, CachedShard)
        values: list[Any] | None = shard.note(note) if remote else None
        if values is None:
            values = parquet.read_table(shard.path(), columns=[name]).column(name).to_pylist()
            if remote:
                shard.keep(note, values)
        return values

    def _group(self, number: int, columns: Sequence[str]) -> pa.Table:
        key = (number, tuple(dict.fromkeys(columns)))
        if key not in self._recent:
            file, group = self.groups[number]
            with self.shards[file].open() as opened:
                source = parquet.ParquetFile(opened, metadata=self.metadata[file])
                self._recent[key] = source.read_row_group(group, columns=list(key[1]))
            while len(self._recent) > WINDOW + 1:
                self._recent.popitem(last=False)
        self._recent.move_to_end(key)
        return self._recent[key]


def parquet_metadata(shard: Shard) -> parquet.FileMetaData:
    """Return sizes and columns of a parquet file; those of a remote file are kept when the file itself has to go.

    Raises:
        DataError: it is no parquet file.
    """
    place = shard.notes.with_name(f"{shard.notes.name}.parquet_metadata")
    try:
        if isinstance(shard, CachedShard) and place.is_file():
            return parquet.read_metadata(place)
        metadata = parquet.read_metadata(shard.path())
        if isinstance(shard, CachedShard):
            temporary = temporary_sibling(place)
            metadata.write_metadata_file(temporary)
            os.replace(temporary, place)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shard.name} can't be read as parquet: {error}") from error
    return metadata


def usable(value: Any) -> Any:
    """Return a value of a table, or raise the error that stands in its place."""
    if isinstance(value, DataError):
        raise value
    return value


def _file_identity(path: Path) -> Any:
    if path.is_file():
        return file_digest(path)
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([[str(file.relative_to(path)), file.stat().st_size] for file in inside])


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """Return a column as a list: arrays for lists of numbers (without a Python object a number), else Python values."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return column.to_pylist()
    return [row for chunk in column.chunks for row in _rows_of(chunk)]


def _rows_of(chunk: pa.Array) -> list[NDArray[Any] | None]:
    if pa.types.is_fixed_size_list(chunk.type):
        chunk = chunk.cast(pa.list_(chunk.type.value_type))
    lengths = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = chunk.flatten().to_numpy(zero_copy_only=False)
    rows = np.split(values, np.cumsum(lengths)[:-1]) if len(chunk) else []
    return [row if valid else None for row, valid in zip(rows, chunk.is_valid().to_pylist(), strict=True)]
