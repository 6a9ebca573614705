"""How a student's pictures are prepared from a file, in one step: the data set's preparation and the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..networks.adapter import Adapter
from ..networks.images import ImageContract, ImageSettings, Resize

BY_FIELD: dict[str, Resize] = {"crop": "shortest", "stretch": "squash"}


def picture_field(network: Adapter) -> str | None:
    """Return the input that holds pictures; None if there is none."""
    return next((name for name, modality in network.readers.items() if modality == "image"), None)


def preparation(network: Adapter, fields: Mapping[str, Mapping[str, Any]]) -> ImageSettings | None:
    """Return how a picture of any size becomes the student's input; None for a student without pictures.

    A student that takes pictures in the size of its data set (`resize: none`) gets this size. Where data set and model
    have the same aspect ratio, the data set decides whether it is kept (by a cut) or not.
    """
    name = picture_field(network)
    reader = None if name is None else network.reader(name)
    if name is None or not isinstance(reader, ImageContract):
        return None
    settings, field = reader.settings, fields.get(name, {})
    height, width = (tuple(field.get("shape") or ()) or (3, *settings.size))[1:]
    resize = BY_FIELD.get(str(field.get("resize")))
    if settings.resize == "none":
        return replace(settings, size=(height, width), resize=resize or "shortest", scale_to=None)
    if resize is not None and height * settings.size[1] == width * settings.size[0] and resize != settings.resize:
        return replace(settings, resize=resize, scale_to=None)
    return settings


def is_grey(network: Adapter, fields: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the student was trained on grey pictures."""
    name = picture_field(network)
    return name is not None and next(iter(fields.get(name, {}).get("shape") or [3])) == 1


def sample_pictures(settings: ImageSettings, count: int = 3) -> list[Image.Image]:
    """Return random pictures in the size that they are resized to, so that resizing changes nothing."""
    generator, (height, width) = torch.Generator().manual_seed(0), settings.size
    if settings.resize == "shortest" and settings.scale_to is not None:
        height = width = settings.scale_to
    pixels = torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def prepared(settings: ImageSettings, pictures: list[Image.Image]) -> Tensor:
    """Return what the student's own code makes of pictures, `[B, 3, H, W]`."""
    values = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(p.height, p.width, 3) for p in pictures]
    result: Tensor = ImageContract(settings)(torch.stack(values).permute(0, 3, 1, 2) / 255)
    return result
