"""Preparing `avmnist`: three layouts are recognised.

(a) the pack: `mnist.npz`, `mnist_pca.npz`, `fsdd_8k.npz`, `esc10_noise_8k.npz`, `pairs.npz`;
(b) the original files: MNIST idx files (plain or .gz), the `DIGIT_SPEAKER_TAKE.wav` recordings of the Free Spoken Digit
    Dataset, and the ESC-10 or ESC-50 clips (`FOLD-CLIP-TAKE[-TARGET].wav|ogg`), anywhere below the source folder;
(c) the original AV-MNIST arrays: `image/{train,test}_data.npy`, `audio/{train,test}_data.npy`,
    `{train,test}_labels.npy`.

Everything is written as `.npy` files that can be memory-mapped; speech and noise stay waves (35 MB), so that only the
spectrograms that a run asks for are computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .avmnist_files import read_original_files
from .storage import load_array, prepare_folder, progress_bar, read_npz

PACK_FILES = ("mnist.npz", "mnist_pca.npz", "fsdd_8k.npz", "esc10_noise_8k.npz", "pairs.npz")
ORIGINAL_FILES = (
    "image/train_data.npy",
    "image/test_data.npy",
    "audio/train_data.npy",
    "audio/test_data.npy",
    "train_labels.npy",
    "test_labels.npy",
)
PAIR = np.dtype(
    [
        ("image", np.int32),
        ("audio", np.int16),
        ("label", np.uint8),
        ("noise", np.int16),
        ("noise_start", np.int16),
        ("u", np.float32),
    ]
)
Arrays = dict[str, NDArray[Any]]


def prepare_avmnist(source: Path | None, output: Path, progress: bool = True) -> Path:
    """Write the prepared folder.

    Args:
        source: folder in one of the three layouts.
        output: folder to make.
        progress: show progress bars on a terminal.

    Returns:
        `output`. A folder that was prepared from the same source is kept as it is.

    Raises:
        DataError: unknown layout, missing or damaged source files (all missing ones are named), or an output folder
            with something else in it.
    """

    def write(source: Path, folder: Path) -> dict[str, Any]:
        layout, start = detect_layout(source)
        if layout == "original":
            _write_original(start, folder, progress)
        else:
            arrays = read_pack(start) if layout == "pack" else read_original_files(start, PAIR, progress)
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        return {"format": "original" if layout == "original" else "pairs", "layout": layout}

    return prepare_folder("avmnist", source, output, write)


def detect_layout(source: Path) -> tuple[str, Path]:
    """Return the layout ("pack", "original" or "files") and the folder where it starts.

    Raises:
        DataError: a layout with missing files, or none at all.
    """
    for folder in (source, source / "avmnist"):
        for layout, names in (("pack", PACK_FILES), ("original", ORIGINAL_FILES)):
            missing = [name for name in names if not (folder / name).is_file()]
            if not missing:
                return layout, folder
            if len(missing) < len(names):
                raise DataError(f"{folder} looks like the {layout} layout of avmnist, but lacks {', '.join(missing)}")
    return "files", source


def read_pack(folder: Path) -> Arrays:
    """Return the arrays of layout (a).

    Raises:
        DataError: a file can't be read or lacks an array.
    """
    mnist = read_npz(folder / "mnist.npz", ["train_x", "train_y", "test_x", "test_y"])
    pca = read_npz(folder / "mnist_pca.npz", ["mean", "components"])
    speech = read_npz(folder / "fsdd_8k.npz", ["wave", "offset"])
    noise = read_npz(folder / "esc10_noise_8k.npz", ["mulaw"])
    keys = [f"{split}_{name}" for split in ("train", "val", "test") for name in PAIR.names or ()]
    columns = read_npz(folder / "pairs.npz", keys)
    arrays = {
        "image_train": mnist["train_x"][:, None],
        "image_test": mnist["test_x"][:, None],
        "pca_mean": pca["mean"],
        "pca_components": pca["components"],
        "wave": speech["wave"],
        "wave_offset": speech["offset"].astype(np.int64),
        "noise": noise["mulaw"],
    }
    for split in ("train", "val", "test"):
        pairs = np.zeros(len(columns[f"{split}_label"]), dtype=PAIR)
        for name in PAIR.names or ():
            pairs[name] = columns[f"{split}_{name}"]
        images = mnist["test_y" if split == "test" else "train_y"]
        wrong = np.flatnonzero(images[pairs["image"]] != pairs["label"])
        if len(wrong):
            raise DataError(f"{folder / 'pairs.npz'}: {split} pair {wrong[0]} has another label than its image")
        arrays[f"pairs_{split}"] = pairs
    return arrays


def _write_original(folder: Path, output: Path, progress: bool) -> None:
    """Join train and test, scale each sample to [0, 1] by its own minimum and maximum, store as uint8."""
    labels = [load_array(folder / f"{part}_labels.npy").reshape(-1) for part in ("train", "test")]
    total = sum(map(len, labels))
    for field, shape in (("image", (1, 28, 28)), ("audio", (1, 112, 112))):
        parts = [load_array(folder / field / f"{part}_data.npy") for part in ("train", "test")]
        for part, values, known in zip(("train", "test"), parts, labels, strict=True):
            path = folder / field / f"{part}_data.npy"
            if len(values) != len(known) or values[:1].size != np.prod(shape):
                raise DataError(f"{path} has shape {values.shape}, expected {len(known)} samples of {shape}")
        joined = np.lib.format.open_memmap(output / f"{field}.npy", mode="w+", dtype=np.uint8, shape=(total, *shape))
        start = 0
        for values in parts:
            for first in progress_bar(range(0, len(values), 1024), f"Scaling {field}", progress):
                chunk = min_max(np.asarray(values[first : first + 1024], dtype=np.float32))
                if not np.isfinite(chunk).all():
                    raise DataError(f"{folder / field}: NaN or infinite values near sample {start}")
                joined[start : start + len(chunk)] = np.rint(chunk * 255).reshape(len(chunk), *shape)
                start += len(chunk)
        joined.flush()
    label = np.concatenate(labels)
    if label.min() < 0 or label.max() > 9:
        raise DataError(f"{folder}: labels lie in {label.min()} to {label.max()}, expected 0 to 9")
    np.save(output / "label.npy", label.astype(np.uint8), allow_pickle=False)


def min_max(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each sample `[B, ...]` to [0, 1]; a constant sample becomes 0."""
    flat = values.reshape(len(values), -1)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    return (flat - low) / np.where(high > low, high - low, 1)
