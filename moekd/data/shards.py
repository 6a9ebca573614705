"""Files of a large data set: on disk, or fetched one by one into a cache of bounded size when they are read."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

from ..atomic import write_json
from ..errors import DataError, did_you_mean
from .shard_cache import ShardCache, read_json

logger = logging.getLogger(__name__)

_BRACES = re.compile(r"\{([^{}]*)\}")
_SCHEMES = re.compile(r"^(https|http|hf)://")
_MOST = 1_000_000
_TRIES = 3


class Shard:
    """One file.

    Args:
        name: path or address, for messages.
        notes: where files about it are kept; they get suffixes.
    """

    def __init__(self, name: str, notes: Path) -> None:
        self.name, self.notes = name, notes

    def path(self) -> Path:
        """Return the file on disk, fetched first if need be.

        Raises:
            DataError: it is not there, can't be fetched, or is not the version that was seen before.
        """
        raise NotImplementedError

    def open(self) -> BinaryIO:
        """Return the file opened for reading; it stays readable when another process makes room in the cache.

        Raises:
            DataError: see `path`; or the cache is so small that files go before they can be opened.
        """
        for _ in range(_TRIES):
            try:
                return self.path().open("rb")
            except FileNotFoundError as error:
                if isinstance(self, LocalShard):
                    raise DataError(f"{self.name} does not exist any more") from error
            except OSError as error:
                raise DataError(f"{self.name} can't be read: {error.strerror or error}") from error
        raise DataError(f"{self.name} is gone as soon as it is there: is the cache too small ('cache_gb')?")

    def stamp(self) -> dict[str, Any] | None:
        """Return what tells this version of the file from others; None: not known before it is fetched."""
        raise NotImplementedError

    def note(self, suffix: str) -> Any:
        """Return what was kept about this version of the file, or None."""
        kept = read_json(self._note(suffix))
        current = self.stamp()
        return kept["value"] if kept is not None and current is not None and kept.get("stamp") == current else None

    def keep(self, suffix: str, value: Any) -> None:
        """Keep a JSON-able value about this version of the file.

        Raises:
            DataError: it can't be written.
        """
        place = self._note(suffix)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"stamp": self.stamp(), "value": value})
        except OSError as error:
            raise DataError(
                f"{place} can't be written ({error.strerror or error}): set 'index_dir' to a folder for such files"
            ) from error

    def _note(self, suffix: str) -> Path:
        return self.notes.with_name(f"{self.notes.name}.{suffix}.json")


class LocalShard(Shard):
    """A file on disk; notes lie beside it or in `index_dir`."""

    def __init__(self, file: Path, index_dir: Path | None) -> None:
        unique = str(file.resolve()).lstrip("/").replace("/", "+")
        super().__init__(str(file), file if index_dir is None else index_dir / unique)
        self.file = file

    def path(self) -> Path:
        """Return the file."""
        return self.file

    def stamp(self) -> dict[str, Any]:
        """Return size and time of the last change."""
        try:
            facts = self.file.stat()
        except OSError as error:
            raise DataError(f"{self.file} can't be read: {error.strerror or error}") from error
        return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


class CachedShard(Shard):
    """A remote file; its notes stay in the cache folder when the file itself has to go."""

    def __init__(self, address: str, cache: ShardCache) -> None:
        super().__init__(address, cache.notes(address))
        self.cache = cache

    def path(self) -> Path:
        """Return the cached file, fetched first if need be."""
        return self.cache.path(self.name)

    def stamp(self) -> dict[str, Any] | None:
        """Return what the server said about the version that was fetched first."""
        return self.cache.stamp(self.name)


def warn_if_tight(shards: Sequence[Shard], window: int) -> None:
    """Say so when a window of remote files, and one more, does not fit into their cache: files would come and go."""
    remote = [shard for shard in shards if isinstance(shard, CachedShard)]
    sizes = [int(stamp["size"]) for shard in remote if (stamp := shard.stamp()) is not None]
    needed = sum(sorted(sizes)[-(window + 1) :])
    if remote and needed > remote[0].cache.limit:
        logger.warning(
            "the cache of remote files holds %.1f GiB, less than the %.1f GiB of %d files that are read together, so "
            "that files are fetched again and again: raise 'cache_gb'",
            remote[0].cache.limit / 2**30,
            needed / 2**30,
            min(len(sizes), window + 1),
        )


def is_remote(path: str) -> bool:
    """Return whether a path is an address."""
    return _SCHEMES.match(path) is not None


def open_shards(
    folder: str, patterns: str | Sequence[str], cache: ShardCache | None, index_dir: str | None
) -> list[Shard]:
    """Return the files that some patterns name, in their order.

    Args:
        folder: folder or address to which the patterns are relative.
        patterns: names with braces (`train-{0000..0123}.tar`, `{a,b}.tar`); on disk also globs.
        cache: where remote files go; None refuses them.
        index_dir: folder of notes about files on disk; None is beside them.

    Raises:
        DataError: a file that is not there, a glob of remote files, or an address without a cache.
    """
    names = [patterns] if isinstance(patterns, str) else list(patterns)
    shards: list[Shard] = []
    for pattern in names:
        whole = pattern if is_remote(pattern) else f"{folder.rstrip('/')}/{pattern}" if is_remote(folder) else pattern
        if is_remote(whole):
            shards += _remote(whole, cache)
        else:
            shards += [
                LocalShard(file, None if index_dir is None else Path(index_dir)) for file in _local(folder, pattern)
            ]
    twice = {shard.name for shard in shards if sum(other.name == shard.name for other in shards) > 1}
    if twice:
        raise DataError(f"{sorted(twice)[0]} is named twice")
    return shards


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern with braces stands for, as a shell gives them.

    Raises:
        DataError: braces that hold neither a range nor a list, or more than a million names.
    """
    parts: list[list[str]] = []
    end = 0
    for found in _BRACES.finditer(pattern):
        parts += [[pattern[end : found.start()]], _choices(found.group(1), pattern)]
        end = found.end()
    rest = pattern[end:]
    if "{" in rest or "}" in rest or any("}" in part[0] or "{" in part[0] for part in parts[::2]):
        raise DataError(f"{pattern}: braces do not match")
    count = 1
    for part in parts:
        count *= len(part)
    if count > _MOST:
        raise DataError(f"{pattern} stands for {count} names, more than {_MOST}")
    return ["".join(choice) for choice in product(*parts, [rest])]


def _choices(inside: str, pattern: str) -> list[str]:
    ends = inside.split("..")
    if len(ends) == 2 and all(end.isdecimal() for end in ends):
        first, last = int(ends[0]), int(ends[1])
        width = max(map(len, ends)) if any(len(end) > 1 and end.startswith("0") for end in ends) else 0
        if last - first >= _MOST:
            raise DataError(f"{pattern} stands for more than {_MOST} names")
        if last < first:
            raise DataError(f"{pattern}: the range {{{inside}}} runs backwards")
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    if "," not in inside:
        raise DataError(f"{pattern}: expected a range {{0000..0123}} or a list {{a,b}}, found {{{inside}}}")
    return inside.split(",")


def _local(folder: str, pattern: str) -> list[Path]:
    files = []
    for name in expand(pattern):
        place = str(Path(folder) / name)
        found = sorted(glob.glob(place)) if glob.has_magic(place) else [place]
        missing = [path for path in found if not Path(path).is_file()]
        if missing or not found:
            absent = Path(missing[0] if missing else place)
            near = did_you_mean(absent.name, [path.name for path in absent.parent.glob("*")])
            raise DataError(f"no data file at {absent}{near}")
        files += [Path(path) for path in found]
    return files


def _remote(address: str, cache: ShardCache | None) -> list[Shard]:
    if cache is None:
        raise DataError(f"{address} is remote: set 'cache_dir' to the folder where its files may be kept")
    if any(sign in address.split("://", 1)[1] for sign in "*[]"):
        raise DataError(f"{address}: remote files can't be found by a glob; name them with braces {{0000..0123}}")
    return [CachedShard(name, cache) for name in expand(address)]
