"""Preparing `mfeat`: two layouts are recognised.

(a) the files of UCI's Multiple Features set, anywhere below the source folder: `mfeat-fac`, `mfeat-fou`, `mfeat-kar`,
    `mfeat-mor`, `mfeat-pix`, `mfeat-zer`, text with a row a digit, 200 rows of each digit from 0 to 9 in order. They
    have no test part, so 40 rows of each digit are drawn from a fixed seed;
(b) a pack `mfeat.npz` with `v1` to `v6` (pix, fou, fac, zer, kar, mor), each as `_train` and `_test`, and `y_train` and
    `y_test` with 1 to 10 for the digits 0 to 9; its test part is kept.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .few_labels import labelled_mask
from .storage import read_npz

VIEWS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
DTYPES = {"fac": np.uint16, "pix": np.uint8}
PACK, PACK_VIEWS = "mfeat.npz", {"pix": "v1", "fou": "v2", "fac": "v3", "zer": "v4", "kar": "v5", "mor": "v6"}
ROWS, CLASSES = 2000, 10
TEST, TEST_ROWS, TEST_SEED = 1, 400, 0
Arrays = dict[str, NDArray[Any]]


def write_mfeat(source: Path, folder: Path) -> dict[str, Any]:
    """Write one array a view, the labels and the parts (0: training, 1: test) to a folder.

    Raises:
        DataError: unknown layout, missing files (all are named), or a file that is not as it should be.
    """
    packs = sorted(source.rglob(PACK))
    arrays = read_pack(packs[0]) if packs else read_uci(source)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"{source}: view '{name}' holds NaN or infinite values")
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return {"layout": "pack" if packs else "uci"}


def read_uci(source: Path) -> Arrays:
    """Return the arrays of layout (a)."""
    paths = {view: next(iter(sorted(source.rglob(f"mfeat-{view}"))), None) for view in VIEWS}
    missing = [f"mfeat-{view}" for view, path in paths.items() if path is None]
    if missing:
        raise DataError(f"{source} has no known layout of mfeat: neither {PACK} nor {', '.join(missing)} found")
    arrays = {view: _read_text(path, view) for view, path in paths.items() if path is not None}
    label = np.repeat(np.arange(CLASSES), ROWS // CLASSES)
    return arrays | {"label": label, "part": labelled_mask(label, TEST_ROWS, TEST_SEED).astype(np.uint8)}


def read_pack(path: Path) -> Arrays:
    """Return the arrays of layout (b)."""
    parts = ("train", "test")
    pack = read_npz(path, [f"{key}_{part}" for key in (*PACK_VIEWS.values(), "y") for part in parts])
    label = np.concatenate([pack[f"y_{part}"] for part in parts]).astype(np.int64).reshape(-1) - 1
    if label.min(initial=0) < 0 or label.max(initial=0) >= CLASSES:
        raise DataError(f"{path}: labels lie in {label.min() + 1} to {label.max() + 1}, expected 1 to {CLASSES}")
    sizes = [pack[f"y_{part}"].size for part in parts]
    arrays: Arrays = {"label": label, "part": np.repeat(np.array([0, TEST], dtype=np.uint8), sizes)}
    for view, key in PACK_VIEWS.items():
        for part in parts:
            found, expected = pack[f"{key}_{part}"].shape, (pack[f"y_{part}"].size, VIEWS[view])
            if found != expected:
                raise DataError(f"{path}: {key}_{part} ({view}) has shape {found}, expected {expected}")
        joined = np.concatenate([pack[f"{key}_{part}"] for part in parts])
        arrays[view] = joined.astype(DTYPES.get(view, np.float32))
    return arrays


def _read_text(path: Path, view: str) -> NDArray[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an empty file is a warning
            values = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError, UserWarning) as error:
        raise DataError(f"{path} can't be read as a table of numbers: {error}") from error
    if values.shape != (ROWS, VIEWS[view]):
        raise DataError(f"{path} has {values.shape} numbers, expected {(ROWS, VIEWS[view])}: is it complete?")
    return values.astype(DTYPES.get(view, np.float32))
