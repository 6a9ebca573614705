"""`nyu_depth_v2`: indoor scenes in colour and depth, 40 classes of pixels and void.

NYU-Depth-V2: Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012; the 40 classes:
Gupta et al., CVPR 2013. Nothing of them is part of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from numpy.typing import NDArray
from torch import Tensor

from .arrays import ArrayField, ArraySplit
from .dataset import DATASETS, Dataset, FieldSpec, Split
from .dense import DenseLabels
from .nyu_depth_v2_prepare import CLASSES, HEIGHT, WIDTH, write_nyu
from .published_splits import GROUPS, rows_of_group
from .storage import data_home, load_array, read_manifest


@dataclass(frozen=True)
class Colour:
    """uint8 `[B, 3, H, W]` -> float32, each channel scaled by its minimum and maximum over the data set."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    stride: int = 1

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Scale a batch."""
        low, high = (torch.tensor(x).view(1, -1, 1, 1) for x in (self.low, self.high))
        return _shrunk((torch.tensor(values).float() - low) / (high - low).clamp_min(1), self.stride)


@dataclass(frozen=True)
class Depth:
    """Metres `[B, H, W]` -> float32 `[B, 1, H, W]`, each picture scaled by its own minimum and maximum."""

    stride: int = 1

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Scale a batch; a picture of one depth becomes 0."""
        depth = torch.from_numpy(np.asarray(values, dtype=np.float32))[:, None]
        low, high = depth.amin(dim=(2, 3), keepdim=True), depth.amax(dim=(2, 3), keepdim=True)
        return _shrunk((depth - low) / torch.where(high > low, high - low, 1.0), self.stride)


def _shrunk(maps: Tensor, stride: int) -> Tensor:
    return maps if stride == 1 else F.avg_pool2d(maps, stride)


@DATASETS.register("nyu_depth_v2")
class NyuDepthV2(Dataset):
    """Indoor scenes; run `moekd data prepare nyu_depth_v2 --source DIR` first.

    Splits: `train`, `val`, `test`, 60/20/20 by a published permutation. Fields, scaled as published: `rgb` `[3, H, W]`,
    each channel to [0, 1] over the data set; `depth` `[1, H, W]`, each picture to [0, 1]. Labels `[H, W]`; void is -1
    and counts in no metric and no loss on labels; losses between models read all pixels, as published. Nothing but a
    batch is in memory.

    Args:
        void: `class` keeps a logit for void, class 0, as the published networks have it, and pixels predicted as void
            are errors; `dropped` keeps the logit, and pixels predicted as void do not count in the matrix from which
            all metrics but F1 are computed, as in the released evaluation; `excluded` leaves the 40 classes.
        stride: the maps are averaged over squares of this side: 1 gives 640 x 480 pixels, 8 gives 80 x 60.
        group: which of the 20 published splits.
        root: folder of the prepared files; None is `$MOEKD_DATA_HOME/nyu_depth_v2`, or `data/nyu_depth_v2`.

    Raises:
        DataError: not prepared or damaged.
    """

    kind = "nyu_depth_v2"

    def __init__(
        self,
        void: Literal["class", "dropped", "excluded"] = "class",
        stride: Literal[1, 2, 4, 8] = 1,
        group: Annotated[int, Ge(0), Lt(GROUPS)] = 0,
        root: str | None = None,
    ) -> None:
        self.void, self.stride, self.group = void, stride, group
        self.root = Path(root) if root is not None else data_home() / self.kind
        self.manifest = read_manifest(self.root, self.kind)
        self.class_names = (["void"] if void != "excluded" else []) + [f"class {i}" for i in range(1, CLASSES + 1)]
        self.void_class = 0 if void != "excluded" else None
        size = (HEIGHT // stride, WIDTH // stride)
        self.fields = {
            "rgb": FieldSpec((3, *size), "float32", "image"),
            "depth": FieldSpec((1, *size), "float32", "depth"),
        }

    def load_splits(self) -> dict[str, Split]:
        """Map the files and cut the splits."""
        rgb, depth, label = (load_array(self.root / f"{name}.npy") for name in ("rgb", "depth", "label"))
        low, high = (tuple(self.manifest["range"][end]) for end in ("low", "high"))
        arrays = {
            "rgb": ArrayField(rgb, self.fields["rgb"], Colour(low, high, self.stride)),
            "depth": ArrayField(depth, self.fields["depth"], Depth(self.stride)),
        }
        splits: dict[str, Split] = {}
        for name, rows in rows_of_group(len(label), self.group).items():
            fields = {key: field.at(rows) for key, field in arrays.items()}
            labels = DenseLabels(label, rows, self.stride, 0 if self.void != "excluded" else -1)
            splits[name] = ArraySplit(name, rows, labels, fields, {"picture": rows.tolist()})
            splits[name].drops_void = self.void == "dropped"
        return splits

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return the range of the colours."""
        return {"range": self.manifest["range"]} if field == "rgb" else {}

    def identity(self) -> dict[str, Any]:
        """Return options and checksums; the rows chosen are in the sample ids."""
        files = {name: facts["sha256"] for name, facts in self.manifest["files"].items()}
        return {"void": self.void, "stride": self.stride, "files": files}

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Prepare from the `.mat` files; see `nyu_depth_v2_prepare`."""
        return write_nyu(source, output or data_home() / cls.kind, progress)
