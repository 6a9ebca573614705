"""`ravdess_av`: emotions of 24 actors from what is seen and heard of them: faces in 15 frames, and MFCC.

The clips are the speech part of RAVDESS (Livingstone and Russo, "The Ryerson Audio-Visual Database of Emotional Speech
and Song", PLoS ONE 13(5), 2018; CC BY-NC-SA 4.0, not for commercial use). They are not part of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Lt
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .arrays import ArrayField, ArraySplit
from .avmnist_prepare import min_max
from .dataset import DATASETS, Dataset, FieldSpec, Ids, Split
from .film_faces import FRAMES, SIDE
from .published_splits import GROUPS, rows_of_group
from .ravdess import split_actors
from .ravdess_av_prepare import COEFFICIENTS, EMOTIONS, STEPS, write_ravdess_av
from .storage import data_home, load_array, read_manifest


@dataclass(frozen=True)
class Faces:
    """uint8 `[B, 15, 3, H, W]` -> float32 `[B, 3, 15, H, W]`, each channel scaled by its range over the data set."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Scale a batch."""
        video = torch.tensor(np.asarray(values)).float().transpose(1, 2)
        low, high = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (self.low, self.high))
        return ((video - low) / (high - low).clamp_min(1)).contiguous()


def scaled_mfcc(values: NDArray[Any]) -> Tensor:
    """Coefficients `[B, 15, T]` -> float32, each sample scaled to [0, 1] by its own range."""
    flat = min_max(np.asarray(values, dtype=np.float32))
    return torch.from_numpy(flat.reshape(values.shape))


@DATASETS.register("ravdess_av")
class RavdessAV(Dataset):
    """Emotional speech, seen and heard; run `moekd data prepare ravdess_av --source DIR` first.

    Splits: `train`, `val`, `test`, 60/20/20. Fields, scaled as published: `video` `[3, 15, 224, 224]`, the face in 15
    frames (channels in the order blue, green, red), each channel by its range over the data set; `audio` `[15, 156]`,
    coefficients by frames, each sample by its own range. Classes: 8 emotions.

    Args:
        by: `published`: a permutation of all clips, so that an actor is in several splits; `actor`: nobody is in two.
        group: which of the 20 published splits.
        split_seed: seed of the draw of the actors.
        root: folder of the prepared files; None is `$MOEKD_DATA_HOME/ravdess_av`, or `data/ravdess_av`.

    Raises:
        DataError: not prepared or damaged, or `by: actor` where the prepared files do not say who speaks.
    """

    kind = "ravdess_av"

    def __init__(
        self,
        by: Literal["published", "actor"] = "published",
        group: Annotated[int, Ge(0), Lt(GROUPS)] = 0,
        split_seed: Annotated[int, Ge(0)] = 0,
        root: str | None = None,
    ) -> None:
        self.by, self.group, self.split_seed = by, group, split_seed
        self.root = Path(root) if root is not None else data_home() / self.kind
        self.manifest = read_manifest(self.root, self.kind)
        if by == "actor" and not self.manifest["actors"]:
            raise DataError(
                f"{self.root} was prepared from arrays that do not say who speaks; prepare it from the clips, or use "
                "by: published"
            )
        self.class_names = list(EMOTIONS)
        self.fields = {
            "video": FieldSpec((3, FRAMES, SIDE, SIDE), "float32", "video"),
            "audio": FieldSpec((COEFFICIENTS, STEPS), "float32", "audio"),
        }

    def load_splits(self) -> dict[str, Split]:
        """Map the files and cut the splits."""
        labels = np.array(load_array(self.root / "label.npy"), dtype=np.int64)
        low, high = (tuple(self.manifest["range"][end]) for end in ("low", "high"))
        arrays = {
            "video": ArrayField(load_array(self.root / "video.npy"), self.fields["video"], Faces(low, high)),
            "audio": ArrayField(load_array(self.root / "audio.npy"), self.fields["audio"], scaled_mfcc),
        }
        names = self.manifest["names"]
        splits: dict[str, Split] = {}
        for name, rows in self._rows(len(labels)).items():
            clips = [str(names[row]) for row in rows]
            table: dict[str, list[Any]] = {"clip": clips, "emotion": [self.class_names[x] for x in labels[rows]]}
            fields = {key: field.at(rows) for key, field in arrays.items()}
            splits[name] = ArraySplit(name, rows, labels[rows], fields, table, clips.__getitem__)
        return splits

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return the range of the channels."""
        return {"range": self.manifest["range"]} if field == "video" else {}

    def identity(self) -> dict[str, Any]:
        """Return checksums; the rows chosen are in the sample ids."""
        return {"files": {name: facts["sha256"] for name, facts in self.manifest["files"].items()}}

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Prepare from arrays or from clips; see `ravdess_av_prepare`."""
        return write_ravdess_av(source, output or data_home() / cls.kind, progress)

    def _rows(self, total: int) -> dict[str, Ids]:
        if self.by == "published":
            return rows_of_group(total, self.group)
        actor = np.array(self.manifest["actors"], dtype=np.int64)
        parts = split_actors(actor, self.split_seed)
        return {name: np.flatnonzero(np.isin(actor, actors)) for name, actors in parts.items()}
