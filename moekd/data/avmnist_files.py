"""Layout (b) of `avmnist`: MNIST idx files, spoken digits as wav files, ESC noise clips -> arrays and seeded pairs."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .speech import level, loudest, mu_law_encode, read_wave
from .storage import progress_bar

RATE = 8000
SPEECH_SAMPLES, NOISE_SAMPLES = 8064, 16128
PAIR_SEED = 20250707
COMPONENTS = 64
TAKES = {"train": range(10, 10**6), "val": range(5, 10), "test": range(5)}
FOLDS = {"train": (1, 2, 3), "val": (4,), "test": (5,)}
ESC10_TARGETS = {0, 1, 10, 11, 12, 20, 21, 38, 40, 41}
_SPEECH = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")
_NOISE = re.compile(r"([1-5])-\d+-[A-Z](?:-(\d+))?\.(?:wav|ogg)")
_IDX = {
    "train images": r"train-images[.-]idx3-ubyte(\.gz)?",
    "train labels": r"train-labels[.-]idx1-ubyte(\.gz)?",
    "test images": r"t10k-images[.-]idx3-ubyte(\.gz)?",
    "test labels": r"t10k-labels[.-]idx1-ubyte(\.gz)?",
}
Arrays = dict[str, NDArray[Any]]


def read_original_files(source: Path, pair: np.dtype[Any], progress: bool = True) -> Arrays:
    """Return the arrays of a prepared folder.

    Speech: mean removed, RMS 0.1, the loudest 8,064 samples of longer recordings. Noise: the loudest 16,128 samples,
    RMS 0.1, mu-law. Pairs: each image with a recording of its digit and a noise, drawn from a fixed seed; takes 0-4 and
    noise fold 5 are for test, takes 5-9 and fold 4 for validation, as is every 12th part of the training images.

    Args:
        source: folder that holds all files, at any depth.
        pair: dtype of the pair tables.
        progress: show progress bars on a terminal.

    Raises:
        DataError: naming all missing parts, or the file that can't be read.
    """
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    idx = {name: next((p for p in paths if re.fullmatch(regex, p.name)), None) for name, regex in _IDX.items()}
    speech = [(path, match) for path in paths if (match := _SPEECH.fullmatch(path.name))]
    noise = [(path, match) for path in paths if (match := _NOISE.fullmatch(path.name))]
    noise = [item for item in noise if item[1][2] is None or int(item[1][2]) in ESC10_TARGETS]
    missing = [f"MNIST {name} ({_IDX[name]})" for name, path in idx.items() if path is None]
    missing += [] if speech else ["spoken digits (DIGIT_SPEAKER_TAKE.wav)"]
    missing += [] if noise else ["ESC-10 clips (FOLD-CLIP-TAKE[-TARGET].wav or .ogg)"]
    if missing:
        raise DataError(
            f"{source} has no known layout of avmnist; not found for the original files: {'; '.join(missing)}"
        )
    values = {name: read_idx(path) for name, path in idx.items() if path is not None}
    for part in ("train", "test"):
        if len(values[f"{part} images"]) != len(values[f"{part} labels"]):
            raise DataError(f"{idx[f'{part} images']} and {idx[f'{part} labels']} have different lengths")
    mean, components = principal_components(values["train images"], COMPONENTS)
    waves, offset = _read_speech([path for path, _ in speech], progress)
    arrays: Arrays = {
        "image_train": values["train images"][:, None],
        "image_test": values["test images"][:, None],
        "pca_mean": mean,
        "pca_components": components,
        "wave": waves,
        "wave_offset": offset,
        "noise": _read_noise([path for path, _ in noise], progress),
    }
    digit, take = np.array([int(m[1]) for _, m in speech]), np.array([int(m[3]) for _, m in speech])
    fold = np.array([int(m[1]) for _, m in noise])
    labels = {part: values[f"{part} labels"] for part in ("train", "test")}
    arrays |= {f"pairs_{split}": table for split, table in draw_pairs(labels, digit, take, fold, pair).items()}
    return arrays


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of an idx file of unsigned bytes, plain or gzip.

    Raises:
        DataError: another format, or a truncated file.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, axes = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DataError(f"{path} can't be read as an idx file: {error}") from error
    body = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes)
    if zero != 0 or kind != 8 or body.size != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path} is no complete idx file of bytes: header type {kind}, shape {shape}, {body.size} values"
        )
    return body.reshape(shape)


def principal_components(images: NDArray[np.uint8], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean image `[784]` and the first principal components `[count, 784]` of images in [0, 1]."""
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    mean = pixels.mean(axis=0)
    pixels -= mean
    _, vectors = np.linalg.eigh((pixels.T @ pixels).astype(np.float64))
    return mean, np.ascontiguousarray(vectors[:, ::-1][:, :count].T, dtype=np.float32)


def _read_speech(paths: Sequence[Path], progress: bool) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    waves = []
    for index in progress_bar(range(len(paths)), "Reading spoken digits", progress):
        wave = level(loudest(read_wave(paths[index], RATE), SPEECH_SAMPLES))
        waves.append(np.rint(wave.clip(-1, 32767 / 32768) * 32768).astype(np.int16))
    return np.concatenate(waves), np.cumsum([0, *map(len, waves)])


def _read_noise(paths: Sequence[Path], progress: bool) -> NDArray[np.uint8]:
    codes = np.zeros((len(paths), NOISE_SAMPLES), dtype=np.uint8)
    for index in progress_bar(range(len(paths)), "Reading noise", progress):
        wave = level(loudest(read_wave(paths[index], RATE), NOISE_SAMPLES))
        codes[index] = mu_law_encode(np.resize(wave, NOISE_SAMPLES))
    return codes


def draw_pairs(
    labels: dict[str, NDArray[np.uint8]],
    digit: NDArray[np.int64],
    take: NDArray[np.int64],
    fold: NDArray[np.int64],
    pair: np.dtype[Any],
) -> dict[str, NDArray[Any]]:
    """Draw the pairs of the three splits.

    Args:
        labels: digits of the "train" and "test" images.
        digit: digit of each recording.
        take: take of each recording.
        fold: fold of each noise clip.
        pair: dtype of the tables.

    Raises:
        DataError: no recording of a digit, or no noise, for one of the splits.
    """
    generator = np.random.default_rng(PAIR_SEED)
    order = generator.permutation(len(labels["train"]))
    cut = len(order) - len(order) // 12
    tables = {}
    for split, images in (("train", order[:cut]), ("val", order[cut:]), ("test", np.arange(len(labels["test"])))):
        table = np.zeros(len(images), dtype=pair)
        table["image"] = images
        table["label"] = labels["test" if split == "test" else "train"][images]
        for value in np.unique(table["label"]):
            takes = TAKES[split]
            choice = np.flatnonzero((digit == value) & (take >= takes.start) & (take < takes.stop))
            if not len(choice):
                raise DataError(f"no recording of digit {value} for {split} (takes from {takes.start})")
            rows = table["label"] == value
            table["audio"][rows] = generator.choice(choice, size=int(rows.sum()))
        noises = np.flatnonzero(np.isin(fold, FOLDS[split]))
        if not len(noises):
            raise DataError(f"no noise clip of fold {' or '.join(map(str, FOLDS[split]))} for {split}")
        table["noise"] = generator.choice(noises, size=len(images))
        table["noise_start"] = generator.integers(0, NOISE_SAMPLES - SPEECH_SAMPLES + 1, size=len(images))
        table["u"] = generator.random(len(images), dtype=np.float32)
        tables[split] = table
    return tables
