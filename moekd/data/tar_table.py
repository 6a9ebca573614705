"""Tar files of samples (WebDataset) as a table: values are read at their place in the file, in any order."""

from __future__ import annotations

import io
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .dataset import Ids
from .fingerprint import digest
from .loader import WINDOW
from .shards import Shard, warn_if_tight
from .tables import Table
from .tar_index import TarIndex, keys_of, open_index

KEY = "__key__"
ALTERNATIVES = ";"


class TarTable(Table):
    """The samples of some tar files, in the order of the files.

    Columns are the parts of member names after the first dot, in lower case: `txt`, `text`, `caption` and `html` are
    read as text, `cls`, `cls2`, `index` as integers (or text where they are none), `json` as what it holds, `npy` as an
    array, and all others as bytes. `json.NAME` is one value of the object in `json`, `jpg;png` the first column that a
    sample has, `__key__` its key.

    Args:
        shards: the tar files.
        largest: members with more bytes are refused.
        kept: a column that will be read as a whole; it is read along with the index, so that a remote file is fetched
            once for both.

    Raises:
        DataError: see `open_index`.
    """

    def __init__(self, shards: Sequence[Shard], largest: int, kept: str | None = None) -> None:
        self.shards = list(shards)
        self._open: OrderedDict[int, tuple[BinaryIO, NDArray[np.int64]]] = OrderedDict()
        self.indexes: list[TarIndex] = []
        for number, shard in enumerate(shards):
            self.indexes.append(open_index(shard, largest))
            if kept is not None and _finds(kept, self.indexes[-1].columns):
                self._column(number, kept)
        warn_if_tight(self.shards, WINDOW)
        sizes = [index.rows for index in self.indexes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        found = sorted({column for index in self.indexes for column in index.columns})
        super().__init__([], Path("."), [*found, KEY], int(self.starts[-1]))
        self.blocks = np.repeat(np.arange(len(sizes)), sizes)

    @property
    def name(self) -> str:
        """Name for messages."""
        more = f" and {len(self.shards) - 1} more" if len(self.shards) > 1 else ""
        return f"{self.shards[0].name}{more}"

    def has_column(self, name: str) -> bool:
        """Return whether some sample has a column, or the object of which it is a part."""
        return _finds(name, self.columns)

    def identity(self) -> Any:
        """Return a digest of names, sizes and times of all members; their bytes are not read."""
        return [index.digest for index in self.indexes]

    def column(self, name: str) -> list[Any]:
        """Return a whole column; it is kept beside the index.

        Raises:
            DataError: a value that can't be read.
        """
        return [value for number in range(len(self.shards)) for value in self._column(number, name)]

    def read(self, rows: Ids, columns: Sequence[str]) -> dict[str, list[Any]]:
        """Return some rows; the values of a file are read in the order in which they lie there."""
        values: dict[str, list[Any]] = {name: [None] * len(rows) for name in columns}
        for place in np.argsort(rows, kind="stable").tolist():
            number, inside = self._locate(int(rows[place]))
            for name in columns:
                value = self._value(number, inside, name)
                values[name][place] = DataError(f"the sample has no '{name}'") if value is None else value
        return values

    def describe(self, row: int, paths: Sequence[str]) -> str:
        """Return file and key of a row."""
        number, inside = self._locate(row)
        return f"{self.shards[number].name}, key '{keys_of(self.shards[number])[inside]}'"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _locate(self, row: int) -> tuple[int, int]:
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return number, row - int(self.starts[number])

    def _column(self, number: int, name: str) -> list[Any]:
        """Return a column of one file: as it was kept, or read and kept now."""
        shard, note = self.shards[number], f"column-{digest(name)[:12]}"
        kept: list[Any] | None = shard.note(note)
        if kept is None:
            kept = [self._value(number, inside, name) for inside in range(self.indexes[number].rows)]
            for row, value in enumerate(kept):
                if isinstance(value, DataError):
                    raise DataError(f"{shard.name} row {row}, column '{name}': {value}")
                if not isinstance(value, str | int | float | None):
                    raise DataError(
                        f"{shard.name} row {row}, column '{name}' holds {type(value).__name__}; "
                        "expected a text or a number"
                    )
            shard.keep(note, kept)
        return kept

    def _value(self, number: int, inside: int, name: str) -> Any:
        """Return a value, None where the sample has no such member, or the error that says why it can't be read."""
        index, shard = self.indexes[number], self.shards[number]
        if name == KEY:
            return keys_of(shard)[inside]
        for choice in name.split(ALTERNATIVES):
            source = _source(choice, index.columns)
            if source is None:
                continue
            file, spans = self._opened(number)
            start, size = spans[inside, index.columns.index(source)].tolist()
            if size < 0:
                continue
            content = os.pread(file.fileno(), size, start)
            if len(content) != size:
                return DataError(f"{shard.name} ends before byte {start + size}: it was cut")
            return _decoded(content, source, choice[len(source) + 1 :], f"{shard.name}, row {inside}, {source}")
        return None

    def _opened(self, number: int) -> tuple[BinaryIO, NDArray[np.int64]]:
        """Return a file and the spans in it; those of the last few files stay open."""
        if number not in self._open:
            shard, index = self.shards[number], self.indexes[number]
            file = shard.open()
            if shard.stamp() != index.stamp:
                file.close()
                raise DataError(f"{shard.name} changed since the run started: start the run anew")
            self._open[number] = file, index.spans()
            while len(self._open) > WINDOW + 1:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(number)
        return self._open[number]

    def __del__(self) -> None:
        for file, _ in getattr(self, "_open", {}).values():
            file.close()


def _finds(name: str, columns: Sequence[str]) -> bool:
    return any(_source(choice, columns) is not None for choice in name.split(ALTERNATIVES))


def _source(name: str, columns: Sequence[str]) -> str | None:
    """Return the column that holds a name: itself, or the object `json` of which it is a part."""
    if name in columns:
        return name
    owner, _, part = name.partition(".json.")
    if part and f"{owner}.json" in columns:
        return f"{owner}.json"
    return "json" if name.startswith("json.") and "json" in columns else None


def _decoded(content: bytes, column: str, part: str, name: str) -> Any:
    """Return a value, or the error that says why it can't be had."""
    reader = READERS.get(column.rpartition(".")[2])
    if reader is None:
        return {"bytes": content, "path": name}
    try:
        value = reader(content)
        for step in part.split(".") if part else ():
            value = value[step]
    except (ValueError, KeyError, TypeError, EOFError) as error:
        what = f"no '{part}' in it" if isinstance(error, KeyError | TypeError) else str(error)
        return DataError(f"{name} can't be read: {what}")
    return value


def _text(content: bytes) -> str:
    return content.decode("utf-8").strip("\r\n")


def _integer(content: bytes) -> int | str:
    text = _text(content).strip()
    return int(text) if text.removeprefix("-").isdecimal() else text


def _array(content: bytes) -> Any:
    return np.load(io.BytesIO(content), allow_pickle=False)


READERS: dict[str, Callable[[bytes], Any]] = {
    "txt": _text,
    "text": _text,
    "caption": _text,
    "html": _text,
    "cls": _integer,
    "cls2": _integer,
    "index": _integer,
    "json": json.loads,
    "npy": _array,
}
