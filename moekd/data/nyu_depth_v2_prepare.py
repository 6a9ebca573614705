"""Preparing `nyu_depth_v2` from MATLAB files of version 7.3, which are HDF5 (extra `moekd[datasets]`). Two layouts:

(a) one file with `images` `[N, 3, 640, 480]`, `depths` `[N, 640, 480]` and `labels40` `[N, 640, 480]` (in the order in
    which HDF5 gives them), such as `NYU-Depth-V2_data.mat`;
(b) the owners' `nyu_depth_v2_labeled.mat` with `images` and `depths`, and beside it `labels40.mat` with `labels40`, in
    version 7.3 or an older one.

Written are `rgb.npy` uint8 `[N, 3, 480, 640]`, `depth.npy` float32 `[N, 480, 640]` in metres and `label.npy` int8
`[N, 480, 640]`: 1 to 40, and -1 for void. Files are read picture by picture, never as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingDependencyError
from .dense import VOID
from .published_splits import column_range
from .resumable import check_sums, write_rows
from .storage import load_array

CLASSES, HEIGHT, WIDTH = 40, 480, 640
LABELS = "labels40"
SHAPES = {"images": (3, WIDTH, HEIGHT), "depths": (WIDTH, HEIGHT), LABELS: (WIDTH, HEIGHT)}


def write_nyu(source: Path | None, output: Path, progress: bool = True, chunk: int = 16) -> Path:
    """Write the arrays.

    Raises:
        DataError: missing files or variables (they are named), or one that is not as it should be.
        MissingDependencyError: h5py is not installed.
    """
    if source is None or not source.is_dir():
        raise DataError(f"source folder {source} does not exist: give the folder of the .mat files (--source DIR)")
    verified = check_sums(source)
    with variables(source) as found:
        rows = int(found["images"].shape[0])
        for name, shape in SHAPES.items():
            if tuple(found[name].shape) != (rows, *shape):
                raise DataError(f"{source}: {name} has shape {tuple(found[name].shape)}, expected {(rows, *shape)}")
        if rows < 5:
            raise DataError(f"{source}: {rows} pictures; a 60/20/20 split needs at least 5")

        def read(part: range) -> dict[str, NDArray[Any]]:
            images, depths, labels = (np.asarray(found[name][part.start : part.stop]) for name in SHAPES)
            return {
                "rgb": images.astype(np.uint8).transpose(0, 1, 3, 2),
                "depth": _finite(depths, source, part).transpose(0, 2, 1),
                "label": _classes(labels, source, part).transpose(0, 2, 1),
            }

        def finish(folder: Path) -> dict[str, Any]:
            low, high = column_range(load_array(folder / "rgb.npy"), axis=1, chunk=16)
            return {"range": {"low": low, "high": high}, "verified": verified}

        arrays = {
            "rgb": ((3, HEIGHT, WIDTH), "uint8"),
            "depth": ((HEIGHT, WIDTH), "float32"),
            "label": ((HEIGHT, WIDTH), "int8"),
        }
        return write_rows("nyu_depth_v2", source, output, arrays, rows, read, finish, chunk=chunk, progress=progress)


@contextmanager
def variables(source: Path) -> Iterator[dict[str, Any]]:
    """Give the variables `images`, `depths` and `labels40`, as arrays that are read when they are sliced.

    Raises:
        DataError: a variable is in no file; what was found is said.
        MissingDependencyError: h5py is not installed.
    """
    files = sorted(source.rglob("*.mat"))
    if not files:
        raise DataError(f"{source} has no .mat file: nyu_depth_v2_labeled.mat and labels40.mat, or one file with all")
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for file in files:
            opened = _open(file, stack)
            for name in SHAPES:
                if name in opened and name not in found:
                    found[name] = opened[name]
        missing = [name for name in SHAPES if name not in found]
        if missing:
            names = ", ".join(file.name for file in files)
            raise DataError(
                f"{source}: no variable {', '.join(missing)} in {names}; the 40 classes ({LABELS}) come in a file of "
                "their own, since the owners' file has 894 classes"
            )
        yield found


def _open(file: Path, stack: ExitStack) -> Any:
    """Open a `.mat` file of any version; older ones are small enough to be read, and have their axes turned."""
    with file.open("rb") as stream:
        start = stream.read(128)
    if start.startswith(b"MATLAB 5.0"):
        from scipy.io import loadmat

        try:
            old = loadmat(file, variable_names=list(SHAPES))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{file} can't be read: {error}") from error
        return {name: array.T for name, array in old.items() if isinstance(array, np.ndarray)}
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py", "datasets", "reading MATLAB files of version 7.3") from error
    try:
        return stack.enter_context(h5py.File(file, "r"))
    except OSError as error:
        raise DataError(f"{file} is no MATLAB file of version 7.3, or damaged: {error}") from error


def _finite(depths: NDArray[Any], source: Path, part: range) -> NDArray[np.float32]:
    values = depths.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{source}: depths hold NaN or infinite values near picture {part.start}")
    return values


def _classes(labels: NDArray[Any], source: Path, part: range) -> NDArray[np.int8]:
    if labels.min(initial=0) < 0 or labels.max(initial=0) > CLASSES:
        raise DataError(
            f"{source}: {LABELS} near picture {part.start} lie in {labels.min()} to {labels.max()}, expected 0 (void) "
            f"to {CLASSES}"
        )
    return np.where(labels == 0, VOID, labels).astype(np.int8)
