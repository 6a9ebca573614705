"""A folder of bounded size for remote files; the file that was read longest ago goes first.

Several processes may share the folder: a file is fetched once, appears complete or not at all, and one that is gone
again is fetched anew. A file that another process still reads stays readable until it is closed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..atomic import temporary_sibling, write_json
from ..errors import DataError

logger = logging.getLogger(__name__)

Fetch = Callable[[str, Path, int], dict[str, Any]]
_ABANDONED_AFTER = 24 * 3600
_OURS = re.compile(r"[0-9a-f]{16}-")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}-.+\.tmp")


class ShardCache:
    """Remote files by address.

    Args:
        folder: where they are kept.
        limit: bytes that they may take together.
        fetch: by scheme ("https"): writes the file at an address to a path, reading no more than a number of bytes, and
            returns what tells this version from others.

    Raises:
        DataError: no bytes at all are allowed.
    """

    def __init__(self, folder: Path, limit: int, fetch: Mapping[str, Fetch]) -> None:
        if limit < 1:
            raise DataError(f"the cache of remote files needs room, found a limit of {limit} bytes")
        self.folder, self.limit, self.fetch = folder, limit, dict(fetch)

    def path(self, address: str) -> Path:
        """Return the file of an address, fetched if it is not there.

        Raises:
            DataError: it can't be fetched, is larger than the whole cache, or changed since it was fetched first.
        """
        place = self._place(address)
        if not _touch(place):
            self.folder.mkdir(parents=True, exist_ok=True)
            with waiting_lock(place.with_name(f"{place.name}.lock")):
                if not _touch(place):
                    self._fetch(address, place)
        return place

    def stamp(self, address: str) -> dict[str, Any] | None:
        """Return what was said about the file when it was fetched first, or None."""
        kept = read_json(self._stamp(address))
        return None if kept is None else dict(kept)

    def notes(self, address: str) -> Path:
        """Return the prefix of files about an address."""
        place = self._place(address)
        return place.with_name(f"{place.name}.about")

    def _place(self, address: str) -> Path:
        name = Path(urlsplit(address).path).name[-60:] or "file"
        return self.folder / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name}"

    def _stamp(self, address: str) -> Path:
        place = self._place(address)
        return place.with_name(f"{place.name}.stamp.json")

    def _fetch(self, address: str, place: Path) -> None:
        scheme = address.split("://", 1)[0]
        if scheme not in self.fetch:
            raise DataError(f"{address}: expected an address with {', '.join(sorted(self.fetch))}")
        temporary = temporary_sibling(place)
        try:
            stamp = self.fetch[scheme](address, temporary, self.limit)
            before = self.stamp(address)
            if before is not None and before != stamp:
                raise DataError(
                    f"{address} changed since it was fetched first (then {before}, now {stamp}): delete the files "
                    f"{self._place(address).name}* in {self.folder} and start the run anew"
                )
            self._make_room(temporary.stat().st_size)
            if before is None:
                write_json(self._stamp(address), stamp)
            os.replace(temporary, place)
        except OSError as error:
            raise DataError(f"{address} can't be kept in {self.folder}: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        logger.info("fetched %s", address)

    def _make_room(self, needed: int) -> None:
        """Delete the files that were read longest ago until `needed` bytes fit; files of others are left alone."""
        files = []
        for path in self.folder.iterdir():
            left_behind = _TEMPORARY.fullmatch(path.name)
            if not left_behind and not (_OURS.match(path.name) and self._has_stamp(path)):
                continue
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            if not left_behind:
                files.append((facts.st_mtime_ns, facts.st_size, path))
            elif time.time() - facts.st_mtime > _ABANDONED_AFTER:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in files) + needed
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size

    @staticmethod
    def _has_stamp(path: Path) -> bool:
        return path.with_name(f"{path.name}.stamp.json").is_file()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file that this package wrote; None if there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes (`flock`), waiting for it; a no-op where the system has none."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _touch(path: Path) -> bool:
    """Note that a file is being read; False if it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
