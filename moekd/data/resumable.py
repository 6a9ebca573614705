"""Preparing large data sets: arrays that are written part by part, on disk only, and go on where they were stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import write_json
from ..errors import DataError
from .storage import MANIFEST, progress_bar, read_manifest, write_manifest

Spec = tuple[tuple[int, ...], str]
PROGRESS = "progress.json"
#: Files in which owners of data publish checksums beside them, and the algorithm that they mean.
SUMS = {
    **dict.fromkeys(("md5sums.txt", "MD5SUMS", "md5sum.txt"), "md5"),
    **dict.fromkeys(("sha256sums.txt", "SHA256SUMS", "sha256sum.txt"), "sha256"),
}
_SUM = re.compile(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{64})\s+\*?(.+)")


def write_rows(
    name: str,
    source: Path,
    output: Path,
    arrays: Mapping[str, Spec],
    rows: int,
    read: Callable[[range], Mapping[str, NDArray[Any]]],
    finish: Callable[[Path], Mapping[str, Any]],
    *,
    chunk: int = 64,
    progress: bool = True,
) -> Path:
    """Write a prepared folder row by row; an interrupted call goes on behind the last chunk that was complete.

    Until it is complete, the folder is called `.NAME.partial`.

    Args:
        name: kind of the data set.
        source: where the rows come from.
        output: folder to make; one that was prepared from the same source is kept as it is.
        arrays: shape of one row and dtype, by file name without its ending.
        rows: number of rows.
        read: returns the arrays of some rows; a row always gives the same values.
        finish: gets the folder with the complete arrays and returns facts for the manifest.
        chunk: rows between two notes of the progress.
        progress: show a progress bar on a terminal.

    Returns:
        `output`.

    Raises:
        DataError: something else lies in the output folder, too little space, or what `read` raises.
    """
    if (output / MANIFEST).is_file() and read_manifest(output, name)["source"] == str(source.resolve()):
        return output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists already and is not empty: delete it, or give another output folder")
    partial = output.with_name(f".{output.name}.partial")
    plan = {
        "name": name,
        "source": str(source.resolve()),
        "rows": rows,
        "arrays": {k: list(v) for k, v in arrays.items()},
    }
    plan = json.loads(json.dumps(plan))
    done = _done(partial, plan, arrays, rows)
    try:
        for start in progress_bar(range(done, rows, chunk), f"Preparing {name}", progress):
            part = range(start, min(start + chunk, rows))
            _write_part(partial, arrays, rows, part, read(part))
            write_json(partial / PROGRESS, plan | {"done": part.stop})
        facts = finish(partial)
        write_manifest(partial, name=name, source=str(source.resolve()), **facts)
        (partial / PROGRESS).unlink(missing_ok=True)
        if output.is_dir():
            output.rmdir()
        os.replace(partial, output)
    except OSError as error:
        raise DataError(f"can't write {output}: {error}; the same command goes on where it stopped") from error
    return output


def _write_part(
    partial: Path, arrays: Mapping[str, Spec], rows: int, part: range, values: Mapping[str, NDArray[Any]]
) -> None:
    """Write some rows of all arrays; the files are made with the first ones."""
    for key, (shape, dtype) in arrays.items():
        file = partial / f"{key}.npy"
        if part.start == 0:
            opened = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=(rows, *shape))
        else:
            opened = np.lib.format.open_memmap(file, mode="r+")
        opened[part.start : part.stop] = values[key]
        opened.flush()


def _done(partial: Path, plan: Mapping[str, Any], arrays: Mapping[str, Spec], rows: int) -> int:
    """Return how many rows an earlier call wrote; make a fresh folder where there is none, or one of another plan."""
    try:
        found = json.loads((partial / PROGRESS).read_bytes())
        done = int(found.pop("done"))
    except (OSError, ValueError, KeyError, AttributeError):
        found, done = None, 0
    complete = all((partial / f"{key}.npy").is_file() for key in arrays)
    if found == plan and complete:
        return done
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    sizes = (np.prod((rows, *shape), dtype=np.int64) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
    needed, free = int(sum(sizes)), shutil.disk_usage(partial).free
    if needed > free:
        raise DataError(f"{partial} needs {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free")
    write_json(partial / PROGRESS, dict(plan) | {"done": 0})
    return 0


def check_sums(source: Path) -> int:
    """Compare files with the checksums that lie beside them (`md5sums.txt`, `SHA256SUMS`, ...); files that are not
    there do not matter.

    Returns:
        The number of files that were compared.

    Raises:
        DataError: a file is not what its owner published; the message names it.
    """
    compared = 0
    for sums, algorithm in SUMS.items():
        for path in sorted(source.rglob(sums)):
            for line in path.read_text(encoding="utf-8").splitlines():
                match = _SUM.fullmatch(line.strip())
                file = path.parent / match[2] if match else None
                if match is None or file is None or not file.is_file():
                    continue
                with file.open("rb") as stream:
                    found = hashlib.file_digest(stream, algorithm).hexdigest()
                if found != match[1].lower():
                    raise DataError(
                        f"{file} has the {algorithm} {found}, but {path.name} says {match[1]}: fetch it again"
                    )
                compared += 1
    return compared
