"""Random crops, flips and colours of pictures that can be made again.

Shapes: B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ..errors import DataError
from ..model import Batch
from ..registry import Injected
from .augmentation import Crop, cut, draw_crop, mirror, recolour
from .base import TRANSFORMS, ReplayableTransform
from .draws import uniforms

Share = Annotated[float, Ge(0), Le(1)]
NO_CROP = (1.0, 1.0)


@TRANSFORMS.register("image_augment")
class ImageAugment(ReplayableTransform):
    """Random resized crop, horizontal flip and colour jitter, drawn from (seed, sample id, view).

    All fields of a sample get the same box and flip, and so do dense labels `[B, H, W]` (by the nearest pixel). Colours
    change in fields with 3 channels only; the data set's normalisation (`mean`, `std`) is undone for them and done
    again. Pictures keep their size.

    Args:
        fields: batch fields `[B, C, H, W]`.
        scale: least and largest share of the area that is seen; [1, 1] cuts nothing.
        ratio: least and largest width / height of the box.
        flip: probability of mirroring left and right.
        brightness: largest change of the factor, see `recolour`.
        contrast: the same, for contrast.
        saturation: the same, for saturation.
        grey: probability of a grey picture.
        views: number of stored views of a sample, one of which is drawn in each epoch; null is a new one every epoch.
        seed: seed of the draws; not the run's, so that stored views fit runs with other seeds.
        field_info: how the data set made the fields ("mean", "std"), by field name.

    Raises:
        DataError: an impossible range, or a field that holds no pictures.
    """

    def __init__(
        self,
        fields: list[str] = ["image"],  # noqa: B006
        scale: tuple[float, float] = (0.5, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        flip: Share = 0.5,
        brightness: Annotated[float, Ge(0)] = 0.0,
        contrast: Annotated[float, Ge(0)] = 0.0,
        saturation: Annotated[float, Ge(0)] = 0.0,
        grey: Share = 0.0,
        views: Annotated[int, Ge(1)] | None = None,
        seed: Annotated[int, Ge(0)] = 0,
        field_info: Injected[Mapping[str, Mapping[str, Any]] | None] = None,
    ) -> None:
        super().__init__(views, seed)
        self.fields, self.flip, self.grey = list(fields), flip, grey
        self.scale, self.ratio = _range("scale", scale), _range("ratio", ratio)
        if self.scale[1] > 1:
            raise DataError(f"image_augment: scale: expected shares of the area up to 1, found {list(self.scale)}")
        self.strength = (brightness, contrast, saturation)
        known = field_info or {}
        self.recipes = {name: {key: known.get(name, {}).get(key) for key in ("mean", "std")} for name in self.fields}

    def replay(self, batch: Batch, views: Tensor) -> Batch:
        """Return the batch with its fields in the given views `[B]`."""
        drawn = uniforms(self.seed, batch["id"], views, 9)
        seen = dict(batch)
        for name in self.fields:
            maps = batch.get(name)
            if not isinstance(maps, Tensor) or maps.dim() != 4 or not maps.is_floating_point():
                found = "no such field" if maps is None else f"{tuple(maps.shape)} {maps.dtype}"
                raise DataError(f"image_augment needs pictures [B, C, H, W] in field '{name}', found {found}")
            seen[name] = self._colour(name, self._move(maps, drawn), drawn[:, 5:])
        label = batch.get("label")
        if isinstance(label, Tensor) and label.dim() == 3:
            seen["label"] = self._move(label[:, None], drawn, nearest=True)[:, 0]
        return seen

    def identity(self) -> dict[str, Any]:
        """Return options and normalisation; the number of views only says how many are kept."""
        names = ("fields", "scale", "ratio", "flip", "strength", "grey", "seed", "recipes")
        return {"kind": "image_augment"} | {name: getattr(self, name) for name in names}

    def _move(self, maps: Tensor, drawn: Tensor, nearest: bool = False) -> Tensor:
        if (self.scale, self.ratio) == (NO_CROP, NO_CROP):
            return mirror(maps, drawn[:, 4] < self.flip) if self.flip else maps
        height, width = maps.shape[-2:]
        crop: Crop = draw_crop(drawn, (height, width), self.scale, self.ratio, self.flip)
        return cut(maps, crop, nearest)

    def _colour(self, name: str, maps: Tensor, drawn: Tensor) -> Tensor:
        if maps.shape[1] != 3 or not (any(self.strength) or self.grey):
            return maps
        mean, std = (_column(self.recipes[name][key], maps) for key in ("mean", "std"))
        plain = maps.float() if std is None else maps.float() * std
        plain = plain if mean is None else plain + mean
        changed = recolour(plain.clamp(0, 1), drawn, self.strength, self.grey)
        changed = changed if mean is None else changed - mean
        return (changed if std is None else changed / std).to(maps.dtype)


def _range(name: str, values: tuple[float, float]) -> tuple[float, float]:
    if len(values) != 2 or not 0 < values[0] <= values[1] < float("inf"):
        raise DataError(f"image_augment: {name}: expected [least, largest], both above 0; found {list(values)}")
    return float(values[0]), float(values[1])


def _column(values: Any, maps: Tensor) -> Tensor | None:
    return torch.tensor(list(values), device=maps.device).view(-1, 1, 1) if values else None
