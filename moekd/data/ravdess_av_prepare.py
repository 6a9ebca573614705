"""Preparing `ravdess_av`: two layouts are recognised.

(a) arrays: `video_data.npy` `[N, 15, 3, 224, 224]`, `audio_data.npy` `[N, 15, 156]` (MFCC) and `label_data.npy` `[N]`,
    as the released preparation of MST-Distill writes them;
(b) clips, at any depth: the films `Actor_01/01-01-01-01-01-01-01.mp4` with picture and sound as RAVDESS distributes
    them, or, for any of them, the face that was cut out before, `..._facecroppad.npy` uint8 `[15, 224, 224, 3]`; and
    the recording of each, either `03-01-01-01-01-01-01.wav` as RAVDESS distributes it or `..._croppad.wav`.
    Faces are cut out of the films by `film_faces` (extra `moekd[films]`). Recordings are resampled to 22,050 Hz and
    brought to 3.6 seconds (zeros at the end, or the middle), then MFCC are computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .film_faces import FRAMES, SIDE, FaceCutter
from .mfcc import mfcc
from .published_splits import column_range
from .resumable import check_sums, write_rows
from .speech import read_wave
from .storage import load_array

EMOTIONS = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
COEFFICIENTS, STEPS = 15, 156
RATE, SAMPLES = 22_050, 79_380
ARRAYS = {"video": "video_data.npy", "audio": "audio_data.npy", "label": "label_data.npy"}
SHAPES: dict[str, tuple[int, ...]] = {
    "video": (FRAMES, 3, SIDE, SIDE),
    "audio": (COEFFICIENTS, STEPS),
    "label": (),
}
DTYPES = {"video": "uint8", "audio": "float32", "label": "uint8"}
_PICTURES = re.compile(r"01-(01-(0[1-8])-\d\d-\d\d-\d\d-(\d\d))(_facecroppad\.npy|\.mp4)")


def write_ravdess_av(source: Path | None, output: Path, progress: bool = True, chunk: int = 16) -> Path:
    """Write `video.npy`, `audio.npy` and `label.npy` from one of the two layouts.

    Raises:
        DataError: unknown layout, missing files (they are named), or a file that is not as it should be.
        MissingDependencyError: faces have to be cut out of films, and OpenCV is not installed.
    """
    if source is None or not source.is_dir():
        raise DataError(f"source folder {source} does not exist: give the folder of RAVDESS (--source DIR)")
    verified = check_sums(source)
    found = {key: next(iter(sorted(source.rglob(name))), None) for key, name in ARRAYS.items()}
    if all(found.values()):
        reader: _Arrays | _Clips = _Arrays({key: path for key, path in found.items() if path is not None})
    else:
        reader = _Clips(source)
    if len(reader.names) < 5:
        raise DataError(f"{source}: {len(reader.names)} clips; a 60/20/20 split needs at least 5")

    def finish(folder: Path) -> dict[str, Any]:
        low, high = column_range(load_array(folder / "video.npy"), axis=2, chunk=16)
        facts = {"range": {"low": low, "high": high}, "verified": verified} | reader.facts()
        return facts | {"names": reader.names, "actors": reader.actors, "layout": reader.layout}

    arrays = {key: (shape, DTYPES[key]) for key, shape in SHAPES.items()}
    rows = len(reader.names)
    return write_rows("ravdess_av", source, output, arrays, rows, reader, finish, chunk=chunk, progress=progress)


class _Arrays:
    """Reads layout (a)."""

    layout = "arrays"

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.arrays = {key: load_array(path) for key, path in paths.items()}
        rows = len(self.arrays["label"])
        for key, shape in SHAPES.items():
            if self.arrays[key].shape != (rows, *shape):
                raise DataError(f"{paths[key]} has shape {self.arrays[key].shape}, expected {(rows, *shape)}")
        label = np.asarray(self.arrays["label"])
        if rows and not 0 <= int(label.min()) <= int(label.max()) < len(EMOTIONS):
            raise DataError(f"{paths['label']}: labels lie in {label.min()} to {label.max()}, expected 0 to 7")
        self.names = [f"row {row}" for row in range(rows)]
        self.actors: list[int] = []

    def facts(self) -> dict[str, Any]:
        """Return nothing further; the arrays do not say how they were made."""
        return {}

    def __call__(self, rows: range) -> dict[str, NDArray[Any]]:
        return {key: np.asarray(array[rows.start : rows.stop]) for key, array in self.arrays.items()}


class _Clips:
    """Reads layout (b); a face that was cut out before is taken rather than the film."""

    layout = "clips"

    def __init__(self, source: Path) -> None:
        files = {path.name: path for path in sorted(source.rglob("*")) if path.suffix in (".npy", ".wav", ".mp4")}
        clips: dict[str, tuple[Path, re.Match[str]]] = {}
        for name, path in files.items():
            match = _PICTURES.fullmatch(name)
            if match is not None and (match[1] not in clips or path.suffix == ".npy"):
                clips[match[1]] = (path, match)
        if not clips:
            films = sum(name.endswith(".mp4") for name in files)
            raise DataError(
                f"{source} has no known layout of ravdess_av: neither {', '.join(ARRAYS.values())} nor speech clips "
                f"01-01-*.mp4 nor *_facecroppad.npy found{f', only {films} other films' if films else ''}"
            )
        ends = ("_croppad.wav", ".wav")
        waves = {clip: next((files[f"03-{clip}{e}"] for e in ends if f"03-{clip}{e}" in files), None) for clip in clips}
        missing = [f"03-{clip}.wav" for clip, path in waves.items() if path is None]
        if missing:
            raise DataError(f"{source} lacks {len(missing)} recordings, the first: {', '.join(missing[:5])}")
        self.pictures = [path for path, _ in clips.values()]
        self.waves = [path for path in waves.values() if path is not None]
        self.labels = [int(match[2]) - 1 for _, match in clips.values()]
        self.actors = [int(match[3]) for _, match in clips.values()]
        self.names = list(clips)
        self.films = sum(path.suffix == ".mp4" for path in self.pictures)
        self.cutter = FaceCutter() if self.films else None

    def facts(self) -> dict[str, Any]:
        """Return how many faces were cut out here, and with what."""
        return {"faces": {"films": self.films} | (self.cutter.facts() if self.cutter is not None else {})}

    def __call__(self, rows: range) -> dict[str, NDArray[Any]]:
        return {
            "video": np.stack([self.faces(self.pictures[row]) for row in rows]),
            "audio": np.stack([read_coefficients(self.waves[row]) for row in rows]),
            "label": np.array([self.labels[row] for row in rows], dtype=np.uint8),
        }

    def faces(self, path: Path) -> NDArray[np.uint8]:
        """Return the face in the frames of a clip, `[15, 3, 224, 224]`."""
        if self.cutter is not None and path.suffix == ".mp4":
            return self.cutter(path).transpose(0, 3, 1, 2)
        return read_faces(path)


def read_faces(path: Path) -> NDArray[np.uint8]:
    """Return the frames of a clip, `[15, 3, 224, 224]`.

    Raises:
        DataError: another shape or type.
    """
    frames = load_array(path)
    if frames.shape != (FRAMES, SIDE, SIDE, 3) or frames.dtype != np.uint8:
        raise DataError(f"{path} has {frames.dtype} {frames.shape}, expected uint8 {(FRAMES, SIDE, SIDE, 3)}")
    return np.asarray(frames).transpose(0, 3, 1, 2)


def read_coefficients(path: Path) -> NDArray[np.float32]:
    """Return the MFCC of a recording, `[15, 156]`."""
    return mfcc(fixed_length(read_wave(path, RATE)), RATE, COEFFICIENTS)


def fixed_length(wave: NDArray[np.float32], samples: int = SAMPLES) -> NDArray[np.float32]:
    """Bring a recording `[S]` to a length: zeros at the end, or the middle of it (the released code loses a recording
    that has the length already).
    """
    if len(wave) <= samples:
        return np.pad(wave, (0, samples - len(wave)))
    start = (len(wave) - samples) // 2
    return wave[start : start + samples]
