"""Prepared data on disk: folders that appear complete or not at all, manifests with checksums, cached arrays."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

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


def prepare_folder(name: str, source: Path | None, output: Path, write: Callable[[Path, Path], dict[str, Any]]) -> Path:
    """Make the folder of a prepared data set from files that the user has.

    Args:
        name: kind of the data set.
        source: folder with the files.
        output: folder to make; one that was prepared from the same source is kept as it is.
        write: takes the source and a temporary folder, writes the arrays there and returns facts for the manifest.

    Returns:
        `output`.

    Raises:
        DataError: no source, or something else lies in the output folder.
    """
    if source is None:
        raise DataError(f"data set '{name}' is made from files that you have: give their folder (--source DIR)")
    if not source.is_dir():
        raise DataError(f"source folder {source} does not exist")
    if (output / MANIFEST).is_file() and read_manifest(output, name)["source"] == str(source.resolve()):
        return output
    with new_folder(output) as temporary:
        facts = write(source, temporary)
        write_manifest(temporary, name=name, source=str(source.resolve()), **facts)
    return output


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return some arrays of an `.npz` file.

    Raises:
        DataError: the file can't be read, lacks an array or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as pack:
            missing = [key for key in keys if key not in pack.files]
            if missing:
                raise DataError(f"{path} lacks the arrays {', '.join(missing)}")
            return {key: pack[key] for key in keys}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error, AttributeError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


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
