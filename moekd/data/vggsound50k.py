"""`vggsound50k`: 141 kinds of events seen and heard, as features (the subset AVEL-50k of VGGSound).

VGGSound: Chen et al., ICASSP 2020, CC BY 4.0; the subset with events by second: Zhou et al., "Contrastive Positive
Sample Propagation along the Audio-Visual Event Line", TPAMI 2022. Nothing of them is part of the package.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Lt
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .arrays import ArrayField, ArraySplit, to_float
from .dataset import DATASETS, Dataset, FieldSpec, Split
from .published_splits import GROUPS, column_range, rows_of_group
from .resumable import check_sums, write_rows
from .storage import data_home, load_array, read_manifest

METADATA, CATEGORIES = "VGGS50k_metadata.txt", "vggsound-avel50k.csv"
SECONDS, CLASSES = 10, 141
SHAPES = {"visual": (SECONDS, 7, 7, 512), "audio": (SECONDS, 128)}
#: Folder and end of the files of each kind of array.
FILES = {
    "visual": ("visual_features", "_vFeature.npy"),
    "audio": ("audio_features", "_aFeature.npy"),
    "segments": ("seg_labels", "_sLabel.npy"),
}


@dataclass(frozen=True)
class Between:
    """Numbers `[B, ...]` -> float32, scaled by one minimum and maximum; `order` moves the axes of a sample."""

    low: float
    high: float
    order: tuple[int, ...] | None = None

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Scale a batch."""
        scaled = torch.from_numpy(np.asarray(values)).float()
        scaled = (scaled - self.low) / (self.high - self.low if self.high > self.low else 1.0)
        return scaled if self.order is None else scaled.permute(0, *(axis + 1 for axis in self.order)).contiguous()


@DATASETS.register("vggsound50k")
class VggSound50k(Dataset):
    """Events that are seen and heard; run `moekd data prepare vggsound50k --source DIR` first.

    Splits: `train`, `val`, `test`, 60/20/20 by a published permutation. Fields, each scaled to [0, 1] by its one
    minimum and maximum over all videos, as published: `visual` `[512, 10, 7, 7]`, ten seconds of a VGG network's last
    pooling; `audio` `[10, 128]`, ten seconds of a VGGish network; and `segments` `[10]`, in which seconds the event
    happens. The label is the video's class. The arrays stay on disk: 0.5 MB a video in half precision.

    Args:
        group: which of the 20 published splits.
        root: folder of the prepared files; None is `$MOEKD_DATA_HOME/vggsound50k`, or `data/vggsound50k`.

    Raises:
        DataError: not prepared or damaged.
    """

    kind = "vggsound50k"

    def __init__(self, group: Annotated[int, Ge(0), Lt(GROUPS)] = 0, root: str | None = None) -> None:
        self.group = group
        self.root = Path(root) if root is not None else data_home() / self.kind
        self.manifest = read_manifest(self.root, self.kind)
        self.class_names = list(self.manifest["classes"])
        self.fields = {
            "visual": FieldSpec((512, SECONDS, 7, 7), "float32", "video"),
            "audio": FieldSpec(SHAPES["audio"], "float32", "audio"),
            "segments": FieldSpec((SECONDS,), "float32", "segments"),
        }

    def load_splits(self) -> dict[str, Split]:
        """Map the files and cut the splits."""
        labels = np.array(load_array(self.root / "label.npy"), dtype=np.int64)
        names = list(self.manifest["videos"])
        scales = self.manifest["ranges"]
        transforms: dict[str, Callable[[NDArray[Any]], Tensor]] = {
            "visual": Between(scales["visual"][0], scales["visual"][1], (3, 0, 1, 2)),
            "audio": Between(scales["audio"][0], scales["audio"][1]),
            "segments": to_float,
        }
        arrays = {
            name: ArrayField(load_array(self.root / f"{name}.npy"), spec, transforms[name])
            for name, spec in self.fields.items()
        }
        splits: dict[str, Split] = {}
        for name, rows in rows_of_group(len(labels), self.group).items():
            videos = [names[row] for row in rows]
            fields = {key: field.at(rows) for key, field in arrays.items()}
            splits[name] = ArraySplit(name, rows, labels[rows], fields, {"video": videos}, videos.__getitem__)
        return splits

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return the range that is scaled to [0, 1]."""
        return {"range": self.manifest["ranges"][field]} if field in self.manifest["ranges"] else {}

    def identity(self) -> dict[str, Any]:
        """Return checksums; the rows chosen are in the sample ids."""
        return {"files": {name: facts["sha256"] for name, facts in self.manifest["files"].items()}}

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Prepare from features by video; see `write_vggsound50k`."""
        return write_vggsound50k(source, output or data_home() / cls.kind, progress)


def write_vggsound50k(source: Path | None, output: Path, progress: bool = True, chunk: int = 64) -> Path:
    """Write `visual.npy`, `audio.npy`, `segments.npy` and `label.npy` from features by video.

    The source folder holds, at any depth: `VGGS50k_metadata.txt` with a line `NAME&CLASS` a video (NAME is `v` and the
    video's id, with what the cutting tool added), the folders `visual_features` (`NAME_vFeature.npy`,
    `[10, 7, 7, 512]`), `audio_features` (`NAME_aFeature.npy`, `[10, 128]`) and `seg_labels` (`NAME_sLabel.npy`,
    `[1, 10]`), and, for the names of the classes, `vggsound-avel50k.csv` with the columns `video_id` and `category`.

    Raises:
        DataError: missing files (they are named), or one that is not as it should be.
    """
    if source is None or not source.is_dir():
        raise DataError(f"source folder {source} does not exist: give the folder with {METADATA} (--source DIR)")
    verified = check_sums(source)
    names, labels = _videos(source)
    folders = {kind: _folder(source, folder) for kind, (folder, _) in FILES.items()}
    classes = _classes(source, labels)
    missing = [
        f"{FILES[kind][0]}/{name}{FILES[kind][1]}"
        for kind, folder in folders.items()
        for name in names
        if not (folder / f"{name}{FILES[kind][1]}").is_file()
    ]
    if missing:
        raise DataError(f"{source} lacks {len(missing)} files, the first: {', '.join(missing[:5])}")

    def read(rows: range) -> dict[str, NDArray[Any]]:
        values = {
            kind: np.stack([_load(folder / f"{names[row]}{FILES[kind][1]}", kind) for row in rows])
            for kind, folder in folders.items()
        }
        return values | {"label": labels[rows.start : rows.stop]}

    def finish(folder: Path) -> dict[str, Any]:
        ranges = {}
        for kind in SHAPES:
            (low,), (high,) = column_range(load_array(folder / f"{kind}.npy"))
            ranges[kind] = [low, high]
        return {"classes": classes, "videos": names, "ranges": ranges, "verified": verified}

    arrays = {kind: (shape, "float16") for kind, shape in SHAPES.items()}
    arrays |= {"segments": ((SECONDS,), "uint8"), "label": ((), "uint8")}
    return write_rows("vggsound50k", source, output, arrays, len(names), read, finish, chunk=chunk, progress=progress)


def _videos(source: Path) -> tuple[list[str], NDArray[np.uint8]]:
    """Return names and classes of the videos, in the order of the metadata."""
    file = next(iter(sorted(source.rglob(METADATA))), None)
    if file is None:
        raise DataError(f"{source} has no {METADATA}: a text file with a line NAME&CLASS for each video")
    names, labels = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, mark, label = line.strip().rpartition("&")
        if not mark or not label.isdigit() or int(label) >= CLASSES:
            raise DataError(
                f"{file}, line {number}: expected NAME&CLASS with a class from 0 to {CLASSES - 1}: {line!r}"
            )
        names.append(name)
        labels.append(int(label))
    if len(names) < 5:
        raise DataError(f"{file} names {len(names)} videos; a 60/20/20 split needs at least 5")
    if len(set(names)) < len(names):
        raise DataError(f"{file} names a video twice")
    return names, np.array(labels, dtype=np.uint8)


def _folder(source: Path, name: str) -> Path:
    found = next((path for path in [source / name, *sorted(source.rglob(name))] if path.is_dir()), None)
    if found is None:
        raise DataError(f"{source} has no folder {name}/")
    return found


def _classes(source: Path, labels: NDArray[np.uint8]) -> list[str]:
    """Return the names of the classes: the categories in the order of their first appearance."""
    file = next(iter(sorted(source.rglob(CATEGORIES))), None)
    if file is None:
        return [f"class {index}" for index in range(max(2, int(labels.max()) + 1))]
    with open(file, newline="", encoding="utf-8") as stream:
        names = list(dict.fromkeys(row["category"] for row in csv.DictReader(stream) if row.get("category")))
    if len(names) <= int(labels.max()):
        raise DataError(f"{file} has {len(names)} categories, but {METADATA} uses class {labels.max()}")
    return names


def _load(path: Path, kind: str) -> NDArray[Any]:
    values = np.asarray(load_array(path))
    wanted = SHAPES.get(kind, (SECONDS,))
    if values.size != np.prod(wanted) or values.shape[-1] != wanted[-1]:
        raise DataError(f"{path} has shape {values.shape}, expected {wanted}")
    values = values.reshape(wanted)
    if kind == "segments":
        return (values > 0).astype(np.uint8)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise DataError(f"{path} holds NaN, infinite values, or values beyond the range of half precision")
    return values.astype(np.float16)
