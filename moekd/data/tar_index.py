"""Where the members of a tar file lie, grouped into samples: written once, then read in any order without unpacking.

The naming is that of WebDataset: the key of a member is its path up to the first dot of the file name, the rest is the
column (`a/0001.seg.png`: key `a/0001`, column `seg.png`). Members of a sample follow each other.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import temporary_sibling
from ..errors import DataError
from .shards import Shard

VERSION = 1
ABSENT = -1
_BLOCK = 512


@dataclass(frozen=True)
class TarIndex:
    """What a tar file holds.

    Attributes:
        columns: names of the columns, sorted.
        rows: number of samples R.
        digest: sha256 over names, sizes and times of all members.
        stamp: the version of the tar file.
        place: file of the spans.
    """

    columns: list[str]
    rows: int
    digest: str
    stamp: dict[str, Any] | None
    place: Path

    def spans(self) -> NDArray[np.int64]:
        """Read first byte and size of each value, int64 `[R, columns, 2]`; size -1: the sample has no such member.

        Raises:
            DataError: the file was deleted or changed since the index was opened.
        """
        spans = _read_spans(self.place, self.rows, len(self.columns))
        if spans is None:
            raise DataError(f"{self.place} is gone or damaged: start the run anew, which makes it again")
        return spans


def open_index(shard: Shard, largest: int) -> TarIndex:
    """Return the index of a tar file: the one that was kept if it fits this version of the file, else a new one.

    Args:
        shard: the file.
        largest: members with more bytes are refused.

    Raises:
        DataError: the file is no plain tar file, cut, or holds links, paths that leave the folder, or huge members.
    """
    kept = shard.note("index")
    place = shard.notes.with_name(f"{shard.notes.name}.index.npy")
    fits = kept is not None and kept.get("version") == VERSION and kept.get("largest", 0) <= largest
    if fits and _read_spans(place, kept["rows"], len(kept["columns"])) is not None:
        return TarIndex(kept["columns"], kept["rows"], kept["digest"], shard.stamp(), place)
    columns, keys, spans, content = _scan(shard.path(), shard.name, largest)
    _write_spans(place, spans)
    biggest = int(spans[..., 1].max(initial=0))
    facts = {"version": VERSION, "columns": columns, "rows": len(keys), "digest": content, "largest": biggest}
    shard.keep("keys", keys)
    shard.keep("index", facts)
    return TarIndex(columns, len(keys), content, shard.stamp(), place)


def keys_of(shard: Shard) -> list[str]:
    """Return the keys of the samples of an indexed file."""
    keys: list[str] | None = shard.note("keys")
    if keys is None:
        raise DataError(f"the index of {shard.name} is gone or of another version of the file: start the run anew")
    return keys


def _scan(path: Path, name: str, largest: int) -> tuple[list[str], list[str], NDArray[np.int64], str]:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    content = hashlib.sha256()
    last = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                problem = _problem(member, largest)
                if problem:
                    raise DataError(f"{name}: member {member.name!r} is refused: {problem}")
                if member.isdir():
                    continue
                key, column = split_member(member.name, name)
                if key != last and key in samples:
                    raise DataError(f"{name}: the members of sample '{key}' do not follow each other")
                values, last = samples.setdefault(key, {}), key
                if column in values:
                    raise DataError(f"{name}: member {member.name!r} occurs twice")
                values[column] = (member.offset_data, member.size)
                content.update(f"{member.name}\0{member.size}\0{member.mtime}\n".encode())
            end = archive.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{name} can't be read as an uncompressed tar file: {error}") from error
    _check_end(path, name, end)
    if not samples:
        raise DataError(f"{name} holds no samples")
    columns = sorted({column for values in samples.values() for column in values})
    spans = np.full((len(samples), len(columns), 2), ABSENT, dtype=np.int64)
    number = {column: index for index, column in enumerate(columns)}
    for row, values in enumerate(samples.values()):
        for column, span in values.items():
            spans[row, number[column]] = span
    return columns, list(samples), spans, content.hexdigest()


def split_member(member: str, name: str) -> tuple[str, str]:
    """Return key and column of a member.

    Raises:
        DataError: the file name has no dot, or nothing before it.
    """
    folder, _, file = member.removeprefix("./").rpartition("/")
    stem, dot, column = file.partition(".")
    if not dot or not stem or not column:
        raise DataError(f"{name}: member {member!r} has no name of the form KEY.COLUMN")
    return f"{folder}/{stem}" if folder else stem, column.lower()


def _problem(member: tarfile.TarInfo, largest: int) -> str | None:
    if not member.isdir() and (not member.isreg() or member.issparse()):
        return "it is no regular file (a link, a device, or sparse)"
    if member.name.startswith("/") or "\\" in member.name or ".." in member.name.split("/"):
        return "its path leaves the folder"
    if not member.name.isprintable():
        return "its name has characters that can't be shown"
    if member.size > largest:
        return f"it has {member.size} bytes, more than {largest}; raise 'max_member_mb' if this is right"
    return None


def _check_end(path: Path, name: str, end: int) -> None:
    """A tar file ends with empty blocks; without them it was cut, even if between two members."""
    with path.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise DataError(f"{name} can't be read as an uncompressed tar file: it is cut off at byte {end}")


def _write_spans(place: Path, spans: NDArray[np.int64]) -> None:
    temporary = temporary_sibling(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, spans, allow_pickle=False)
        os.replace(temporary, place)
    except OSError as error:
        raise DataError(
            f"{place} can't be written ({error.strerror or error}): set 'index_dir' to a folder for indexes"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_spans(place: Path, rows: int, columns: int) -> NDArray[np.int64] | None:
    try:
        spans: NDArray[np.int64] = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return spans if spans.shape == (rows, columns, 2) and spans.dtype == np.int64 else None
