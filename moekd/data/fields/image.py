"""Images: decoded with Pillow, resized, scaled to [0, 1], normalised per channel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...errors import DataError
from ..arrays import UnitScale
from .field import FIELDS, Field, media


@FIELDS.register("image")
class ImageField(Field):
    """Picture -> float32 `[channels, H, W]` in [0, 1], or normalised.

    Args:
        column: column with paths, bytes or HF `Image` values; None is the name of the field.
        size: side of the square, or [height, width], in pixels.
        color: "rgb" (3 channels, transparent pixels on white) or "grey" (1 channel).
        resize: "crop" scales the shorter side and cuts the centre; "stretch" changes the aspect ratio.
        mean: value to subtract, per channel.
        std: value to divide by, per channel.
        modality: name of the modality.
    """

    holds_paths = True

    def __init__(
        self,
        size: Annotated[int, Ge(1)] | tuple[int, int],
        column: str | None = None,
        color: Literal["rgb", "grey"] = "rgb",
        resize: Literal["crop", "stretch"] = "crop",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        modality: str = "image",
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.size) < 1:
            raise DataError(f"field 'image': size must be at least 1 pixel, found {self.size}")
        self.column, self.color, self.resize, self.modality = column, color, resize, modality
        channels = 3 if color == "rgb" else 1
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise DataError(f"field 'image': {name} needs {channels} values for color '{color}', found {values}")
        if std is not None and min(std) <= 0:
            raise DataError(f"field 'image': std must be positive, found {std}")
        self.mean, self.std = mean, std
        self._scale = UnitScale(None if mean is None else tuple(mean), None if std is None else tuple(std))

    def decode(self, value: Any, folder: Path) -> NDArray[Any]:
        """Return uint8 `[channels, H, W]`."""
        name, content = media(value, folder)
        try:
            with Image.open(content) as image:
                image.load()
                flat = _flatten(ImageOps.exif_transpose(image), "RGB" if self.color == "rgb" else "L")
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{name} can't be decoded as an image: {error}") from error
        height, width = self.size
        if self.resize == "crop":
            resized = ImageOps.fit(flat, (width, height), Image.Resampling.BICUBIC)
        else:
            resized = flat.resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.array(resized, dtype=np.uint8)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None])

    def transform(self, name: str, values: NDArray[Any]) -> dict[str, Tensor]:
        """Scale a batch."""
        return {name: self._scale(values)}


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in a mode without transparency; 16-bit grey is brought to 8 bits."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert(mode)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return image.convert(mode)
