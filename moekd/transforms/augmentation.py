"""Augmentations of pictures as pure functions of drawn numbers: crop, flip, colour; whole batches at once.

Shapes: B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2989, 0.5870, 0.1140)


@dataclass(frozen=True)
class Crop:
    """Boxes in pixels, float32 `[B]` each, and whether the box is seen mirrored, bool `[B]`."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    mirrored: Tensor


def draw_crop(
    drawn: Tensor, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], flip: float
) -> Crop:
    """Turn uniform numbers into boxes.

    The area is uniform in `scale` times that of the picture, the logarithm of width / height is uniform in the
    logarithms of `ratio` (Szegedy et al. 2015, section 6, with the aspect ratio as torchvision draws it). A side that
    would be longer than the picture's is cut to it.

    Args:
        drawn: uniform numbers `[B, 5]`.
        size: H, W.
        scale: least and largest share of the area.
        ratio: least and largest width / height.
        flip: probability of mirroring.
    """
    height, width = size
    area = (scale[0] + (scale[1] - scale[0]) * drawn[:, 0]) * (height * width)
    low, high = torch.tensor(ratio, dtype=torch.float32).log().tolist()
    stretch = torch.exp(low + (high - low) * drawn[:, 1])
    wide = torch.sqrt(area * stretch).clamp(max=width)
    tall = torch.sqrt(area / stretch).clamp(max=height)
    top, left = drawn[:, 2] * (height - tall), drawn[:, 3] * (width - wide)
    return Crop(top, left, tall, wide, drawn[:, 4] < flip)


def cut(maps: Tensor, crop: Crop, nearest: bool = False) -> Tensor:
    """Return each box of `[B, C, H, W]`, brought back to H x W bilinearly (or by the nearest pixel), same dtype."""
    height, width = maps.shape[-2:]
    sign = torch.where(crop.mirrored, -1.0, 1.0)
    zero = torch.zeros_like(sign)
    across = (2 * crop.left + crop.width) / width - 1
    down = (2 * crop.top + crop.height) / height - 1
    first = torch.stack([sign * crop.width / width, zero, across], dim=1)
    second = torch.stack([zero, crop.height / height, down], dim=1)
    theta = torch.stack([first, second], dim=1)
    grid = F.affine_grid(theta, [len(maps), 1, height, width], align_corners=False)
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(maps.float(), grid, mode=mode, padding_mode="border", align_corners=False).to(maps.dtype)


def mirror(maps: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the rows of `[B, ..., W]` where `mirrored` `[B]` is true."""
    return torch.where(mirrored.view(-1, *[1] * (maps.dim() - 1)), maps.flip(-1), maps)


def recolour(pictures: Tensor, drawn: Tensor, strength: tuple[float, float, float], grey: float) -> Tensor:
    """Change brightness, then contrast, then saturation; then turn some pictures grey.

    Each factor f is uniform in [max(0, 1 - s), 1 + s]: brightness f * p; contrast f * p + (1 - f) * mean luma of the
    picture; saturation f * p + (1 - f) * luma of the pixel; every result is clamped to [0, 1]. These are torchvision's
    `adjust_*`, in a fixed order.

    Args:
        pictures: RGB in [0, 1], `[B, 3, H, W]`.
        drawn: uniform numbers `[B, 4]`.
        strength: s of brightness, contrast and saturation.
        grey: probability of a grey picture.
    """
    low = torch.tensor([max(0.0, 1 - s) for s in strength], device=drawn.device)
    high = torch.tensor([1 + s for s in strength], device=drawn.device)
    factors = (low + (high - low) * drawn[:, :3])[:, :, None, None, None]
    if strength[0]:
        pictures = (factors[:, 0] * pictures).clamp(0, 1)
    if strength[1]:
        middle = luma(pictures).mean(dim=(1, 2, 3), keepdim=True)
        pictures = (factors[:, 1] * pictures + (1 - factors[:, 1]) * middle).clamp(0, 1)
    if strength[2]:
        pictures = (factors[:, 2] * pictures + (1 - factors[:, 2]) * luma(pictures)).clamp(0, 1)
    if grey:
        chosen = (drawn[:, 3] < grey)[:, None, None, None]
        pictures = torch.where(chosen, luma(pictures).expand_as(pictures), pictures)
    return pictures


def luma(pictures: Tensor) -> Tensor:
    """Return the luma (ITU-R BT.601) of RGB `[B, 3, H, W]`, `[B, 1, H, W]`."""
    weights = torch.tensor(_LUMA, dtype=pictures.dtype, device=pictures.device)
    return torch.einsum("bchw,c->bhw", pictures, weights)[:, None]
