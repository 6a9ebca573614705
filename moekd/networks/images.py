"""What an outside model wants to see: pictures of its size, interpolation, crop and normalisation.

A batch holds the picture once, as the data set gives it. `ImageContract` undoes the data set's normalisation, resizes,
crops and normalises as the model was trained, on the device of the batch and with gradients.

Shapes: B batch, C channels (1 or 3), H x W pixels of the data set, h x w pixels of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from .layers import check_input

Interpolation = Literal["bicubic", "bilinear", "nearest"]
Resize = Literal["shortest", "longest", "squash", "none"]


@dataclass(frozen=True)
class ImageOptions:
    """What replaces parts of a model's own preparation of pictures; None keeps the model's.

    Attributes:
        size: side of the square that the model sees, or [height, width].
        mean: value to subtract from a channel in [0, 1].
        std: value to divide by.
        interpolation: how pixels are resampled; always with antialiasing when a picture gets smaller.
        resize: `shortest` scales the shorter side and cuts the centre, `longest` scales the longer side and pads with
            black, `squash` changes the aspect ratio, `none` takes pictures in the size they have in the data set.
        scale_to: with `shortest` and a square, length of the shorter side before the cut; None is the size.
    """

    size: int | tuple[int, int] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: Interpolation | None = None
    resize: Resize | None = None
    scale_to: int | None = None


@dataclass(frozen=True)
class ImageSettings:
    """How a model's pictures are prepared; the names are those of `ImageOptions`."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    scale_to: int | None = None


def image_settings(known: Mapping[str, Any], options: ImageOptions | None, who: str) -> ImageSettings:
    """Join what a model says about its pictures and what the config says instead.

    Args:
        known: parts of `ImageSettings` by name, as the model's library gives them; parts may be missing.
        options: the config's.
        who: name of the model, for messages.

    Raises:
        ConfigError: a part is known from neither side, or can't be done here; all of them in one report.
    """
    given = {key: value for key, value in asdict(options or ImageOptions()).items() if value is not None}
    parts = dict(known) | given
    if "size" in given or parts.get("resize") != "shortest":
        parts["scale_to"] = given.get("scale_to")
    missing = [name for name in ("size", "mean", "std") if parts.get(name) is None]
    problems = [f"image.{name}: {who} does not say it; give it here" for name in missing]
    interpolation, resize = parts.get("interpolation", "bicubic"), parts.get("resize", "shortest")
    for name, value, choices in (
        ("interpolation", interpolation, get_args(Interpolation)),
        ("resize", resize, get_args(Resize)),
    ):
        if value not in choices:
            problems.append(f"image.{name}: {who} wants '{value}', which is not supported; choose {', '.join(choices)}")
    if problems:
        raise ConfigError(problems)
    size, mean, std = parts["size"], _per_channel(parts["mean"]), _per_channel(parts["std"])
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(height, width, parts.get("scale_to") or 1) < 1:
        raise ConfigError(f"image.size: expected sizes of at least 1 pixel, found {parts['size']}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            f"image.mean, image.std: expected one value for red, green and blue, above 0 for std; found {mean}, {std}"
        )
    return ImageSettings((height, width), mean, std, interpolation, resize, parts.get("scale_to"))


def _per_channel(values: float | Sequence[float]) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(float(value) for value in values)


class ImageContract(nn.Module):
    """Turns a batch's pictures into those that a model was trained on.

    The picture of the data set is `x = (p - mean) / std` with p in [0, 1]; p is restored, a grey picture is repeated to
    three channels, then resized, cut, and normalised with the model's own mean and std. Bicubic values are
    clamped to [0, 1], as 8-bit pictures are. Nothing here is part of the state dict.

    Args:
        settings: what the model wants.
        field: how the data set describes the field: "mean" and "std" that it normalised with, if it did.
        label: how messages call the input.

    Shape:
        input `[B, 3, H, W]` or `[B, 1, H, W]`, output `[B, 3, h, w]` in at least float32.
    """

    def __init__(self, settings: ImageSettings, field: Mapping[str, Any] | None = None, label: str = "image") -> None:
        super().__init__()
        self.settings, self.label = settings, label
        field = field or {}
        self.undo_mean = tuple(field.get("mean") or ()) or None
        self.undo_std = tuple(field.get("std") or ()) or None
        shape = tuple(field.get("shape") or (3, 1, 1))
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ConfigError(f"{label}: expected pictures [3, H, W] or [1, H, W], found {list(shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Prepare a batch.

        Raises:
            ModelError: the input is no batch of pictures with 1 or 3 channels.
        """
        x = self.restore(x.to(torch.promote_types(x.dtype, torch.float32)))
        height, width = self.settings.size
        if self.settings.resize != "none":
            x = _cut(self._resize(x), height, width)
        return (x - _columns(self.settings.mean, x)) / _columns(self.settings.std, x)

    def restore(self, x: Tensor) -> Tensor:
        """Return the pictures `[B, 3, H, W]` in [0, 1]."""
        check_input(self.label, x, (None, None, None))
        if x.shape[1] not in (1, 3):
            raise ModelError(f"{self.label}: expected 1 or 3 channels, found {x.shape[1]} in {list(x.shape)}")
        if self.undo_std is not None:
            x = x * _columns(self.undo_std, x)
        if self.undo_mean is not None:
            x = x + _columns(self.undo_mean, x)
        return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x

    def check_range(self, x: Tensor) -> None:
        """Refuse pictures that are not in [0, 1] once the data set's normalisation is undone.

        Raises:
            ModelError: with the range that was found.
        """
        restored = self.restore(x)
        if restored.numel() and not (restored.min() > -0.01 and restored.max() < 1.01):
            raise ModelError(
                f"{self.label}: after undoing the data set's mean {self.undo_mean} and std {self.undo_std}, pixels "
                f"are from {restored.min():.3g} to {restored.max():.3g}; expected [0, 1]: say in the data set how it "
                "normalises, or give pictures in [0, 1]"
            )

    def contract(self) -> dict[str, Any]:
        """Return in plain values how pictures are prepared."""
        settings = {
            key: list(value) if isinstance(value, tuple) else value for key, value in vars(self.settings).items()
        }
        return settings | {"undo_mean": _listed(self.undo_mean), "undo_std": _listed(self.undo_std)}

    def _resize(self, x: Tensor) -> Tensor:
        height, width = _scaled(tuple(x.shape[2:]), self.settings)
        if (height, width) == tuple(x.shape[2:]):
            return x
        mode = self.settings.interpolation
        if mode == "nearest":
            return F.interpolate(x, (height, width), mode="nearest-exact")
        x = F.interpolate(x, (height, width), mode=mode, align_corners=False, antialias=True)
        return x.clamp(0.0, 1.0) if mode == "bicubic" else x

    def extra_repr(self) -> str:
        """Say everything that changes the output, since fingerprints read it."""
        return f"{self.settings}, undo_mean={self.undo_mean}, undo_std={self.undo_std}"


def _listed(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)


def _scaled(size: tuple[int, ...], settings: ImageSettings) -> tuple[int, int]:
    """Return height and width after resizing, rounded as torchvision and open_clip round them."""
    (height, width), (rows, columns) = size, settings.size
    if settings.resize == "squash":
        return rows, columns
    if settings.resize == "shortest" and rows == columns:
        side = settings.scale_to or rows
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    choose = min if settings.resize == "shortest" else max
    ratio = choose(height / rows, width / columns)
    return round(height / ratio), round(width / ratio)


def _cut(x: Tensor, height: int, width: int) -> Tensor:
    """Cut the centre, with black around it where the picture is too small."""
    more_rows, more_columns = max(0, height - x.shape[2]), max(0, width - x.shape[3])
    if more_rows or more_columns:
        x = F.pad(x, (more_columns // 2, (more_columns + 1) // 2, more_rows // 2, (more_rows + 1) // 2))
    top, left = round((x.shape[2] - height) / 2), round((x.shape[3] - width) / 2)
    return x[:, :, top : top + height, left : left + width]


def _columns(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def as_interpolation(name: str) -> Interpolation:
    """Return a library's name of an interpolation; names that are not supported are refused later, with the model's."""
    return cast(Interpolation, {"random": "bicubic", "cubic": "bicubic"}.get(name, name))
