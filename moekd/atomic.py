"""Files that are either complete or absent (temporary name, fsync, one rename), safe names, and a lock on a folder."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import socket
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError

logger = logging.getLogger(__name__)

LONGEST_NAME = 100
TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp")
_WINDOWS = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')


def safe_name(name: str, what: str = "name") -> str:
    """Return `name` if it can be a file or folder name on every system and can't leave its folder.

    Raises:
        ConfigError: separators, `..`, control or reserved characters, a leading or trailing dot or blank, a name that
            Windows reserves, or more than 100 bytes of UTF-8.
    """
    reason = None
    if not isinstance(name, str) or not name:
        reason = "it is empty"
    elif len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        reason = f"it is longer than {LONGEST_NAME} bytes"
    elif not name.isprintable():
        reason = "it has characters that can't be shown"
    elif found := _FORBIDDEN.search(name):
        reason = f"the character {found.group()!r} is not allowed"
    elif name.startswith((".", " ")):
        reason = "it starts with a dot or blank"
    elif name.endswith((".", " ")):
        reason = "it ends with a dot or blank"
    elif name.split(".")[0].strip().lower() in _WINDOWS:
        reason = "Windows reserves it"
    if reason:
        shown = repr(name) if len(str(name)) <= LONGEST_NAME else repr(str(name)[:LONGEST_NAME]) + "..."
        raise ConfigError(f"{what} {shown} can't be used: {reason}; use letters, digits, '-', '_' and '.'")
    return name


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a whole file under a temporary name in the same folder, fsync it, rename it to `path`.

    Whatever happens, `path` holds either its old or its new content; a failure leaves no temporary file.
    """
    temporary = temporary_sibling(path)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write indented JSON atomically; numbers that JSON does not have (NaN, infinity) become null."""
    return write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_jsonl(path: Path, record: Mapping[str, Any]) -> int:
    """Append one record as a line and return the size of the file in bytes after it.

    The line is written by one call. A torn last line, as a power cut leaves it, is cut off first.
    """
    line = (json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    with open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                end = _end_of_last_line(path)
                file.truncate(end)
        if file.write(line) != len(line):
            file.truncate(end)
            raise OSError(f"only a part of the record could be written to {path}; is the disk full?")
    return end + len(line)


def _end_of_last_line(path: Path) -> int:
    content = path.read_bytes()
    return content.rfind(b"\n") + 1


def plain(value: Any) -> Any:
    """Turn scalars of NumPy and PyTorch, paths and tuples into what JSON knows; NaN and infinities become None.

    Raises:
        TypeError: for a value that has no plain form.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r:.80}")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; on success fsync all of it and rename it to `target`, else remove it.

    Raises:
        DataError: `target` exists already; a committed folder is never overwritten.
    """
    _refuse_existing(target)
    temporary = temporary_sibling(target)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                sync_file(Path(folder) / name)
            sync_folder(Path(folder))
        _refuse_existing(target)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)


def _refuse_existing(target: Path) -> None:
    if target.is_symlink() or target.exists():
        raise DataError(f"{target} exists already; it is not overwritten")


def temporary_sibling(path: Path) -> Path:
    """Return a new hidden name beside `path`, which `remove_leftovers` recognises."""
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def remove_leftovers(folder: Path) -> list[str]:
    """Delete what an interrupted writer left in `folder`; call it only while no other process writes there.

    Returns:
        The names that were removed.
    """
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if TEMPORARY.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(path.name)
    return removed


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk, so that a rename survives a power cut (POSIX; Windows has no such call)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def probe_writable(folder: Path, need_bytes: int = 0) -> None:
    """Create `folder` if needed and prove, before hours of training, that files can be written there.

    Args:
        folder: where results will go.
        need_bytes: estimate of what will be written.

    Raises:
        DataError: it is a file, can't be created or written, or the disk has too little space.
    """
    probe = temporary_sibling(folder / "probe")
    try:
        blocker = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
        if blocker is not None:
            raise DataError(f"can't write to {folder}: {blocker} is a file, not a folder; choose another place")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(probe, "xb") as file:
                file.write(b"probe")
                file.flush()
                os.fsync(file.fileno())
        finally:
            with suppress(OSError):
                probe.unlink()
        available = shutil.disk_usage(folder).free
    except OSError as error:
        raise DataError(f"can't write to {folder}: {error.strerror or error}; choose another place") from error
    if available < need_bytes:
        raise DataError(
            f"too little space in {folder}: needed {need_bytes:,} bytes, available {available:,} bytes; "
            "free some space or choose another place"
        )


class FolderLock:
    """An exclusive lock on a folder, held by the process until `release` or its death (also by `kill -9`).

    The file `.lock` names the holder for the message of the second one. It may stay behind; the lock itself is the
    kernel's (`flock`). Processes forked by the holder, such as data workers, do not inherit it.

    Raises:
        DataError: another process holds the lock; the message has its pid and host.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> FolderLock:
        """Take the lock or say who has it."""
        try:
            import fcntl
        except ImportError:
            logger.warning("this system has no flock: %s is not protected against a second run", self.path.parent)
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise DataError(
                f"{self.path.parent} is in use by {self._holder()}; wait or choose another folder"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        self._descriptor = descriptor
        _close_in_children(self)
        return self

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            import fcntl

            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text())
            return f"process {int(holder['pid'])} on host {str(holder['host'])[:LONGEST_NAME]}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process (which has not written its name yet)"

    def __enter__(self) -> FolderLock:
        return self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


def _close_in_children(lock: FolderLock) -> None:
    reference = weakref.ref(lock)

    def close() -> None:
        held = reference()
        if held is not None:
            held._close()

    os.register_at_fork(after_in_child=close)
