"""Prepared data on disk: folders that appear complete or not at all, manifests with checksums, cached arrays."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from ..errors import DataError
from .fingerprint import file_digest

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VERSION = 1


def data_home() -> Path:
    """Return the folder of prepared data sets: `$MOEKD_DATA_HOME`, or `data` in the working folder."""
    return Path(os.environ.get("MOEKD_DATA_HOME") or "data")


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `final` when the block succeeds, and vanishes when it fails.

    Raises:
        DataError: `final` exists.
    """
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise DataError(f"{final} exists already and is not empty: delete it, or give another output folder")
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if final.is_dir():
            final.rmdir()
        os.replace(temporary, final)
    except OSError as error:
        raise DataError(f"can't write {final}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, **info: Any) -> None:
    """Write `manifest.json`: the given facts, and size and sha256 of every array in the folder."""
    found = sorted(folder.glob("*.npy"))
    arrays = {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in found}
    text = json.dumps({"version": VERSION, **info, "files": arrays}, indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """Return the manifest of a prepared data set after checking that its files are there and have their sizes.

    Raises:
        DataError: not prepared, unreadable, another data set, another version, or damaged files.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"data set '{name}' is not prepared in {folder} (no {MANIFEST}): "
            f"run 'moekd data prepare {name} --source DIR --output {folder}', or set the option 'root'"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, files, found = manifest["version"], manifest["files"], manifest["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be read as a manifest ({error!r}): prepare the data set again") from error
    if (found, version) != (name, VERSION):
        raise DataError(f"{path} describes '{found}' version {version}; expected '{name}' version {VERSION}")
    for file, facts in files.items():
        size = (folder / file).stat().st_size if (folder / file).is_file() else None
        if size != facts["bytes"]:
            raise DataError(
                f"{folder / file} is {'missing' if size is None else f'damaged: {size} bytes'}, expected "
                f"{facts['bytes']} bytes: prepare the data set again"
            )
    return manifest


def load_array(path: Path) -> NDArray[Any]:
    """Return an array as a read-only memory-map.

    Raises:
        DataError: not a readable `.npy` file without pickled objects.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} can't be read as an array: {error}") from error
    return array


def cached_array(
    path: Path,
    shape: tuple[int, ...],
    fill: Callable[[slice], NDArray[np.uint8]],
    description: str,
    chunk: int = 64,
) -> NDArray[np.uint8]:
    """Return a uint8 array of the given shape, memory-mapped; computed in chunks of rows when it is not on disk yet.

    The file is written under a temporary name and renamed, so that a file with the final name is complete.

    Raises:
        DataError: too little space, or a file of another shape.
    """
    if not path.is_file():
        needed = int(np.prod(shape, dtype=np.int64))
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            raise DataError(f"{path} needs {needed / 2**20:.0f} MiB, but only {free / 2**20:.0f} MiB are free")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            for start in progress_bar(range(0, shape[0], chunk), description):
                rows = slice(start, min(start + chunk, shape[0]))
                array[rows] = fill(rows)
            array.flush()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    cached = load_array(path)
    if cached.shape != shape or cached.dtype != np.uint8:
        raise DataError(f"{path} holds {cached.dtype} {cached.shape}, expected uint8 {shape}: delete it")
    return cached


def progress_bar(steps: range, description: str, shown: bool = True) -> Iterator[int]:
    """Iterate with a progress bar on a terminal; elsewhere log the start only."""
    console = Console(stderr=True)
    if not (shown and sys.stderr.isatty()):
        logger.info("%s (%d steps)", description, len(steps))
    yield from track(steps, description, console=console, disable=not (shown and sys.stderr.isatty()), transient=True)
