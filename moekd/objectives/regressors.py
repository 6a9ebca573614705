"""Networks that bring the student's activation to the shape of a teacher's.

Shapes: B batch, C channels, D features, N tokens, H x W pixels.
"""

from __future__ import annotations

from math import prod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

RegressorKind = Literal["full", "thin"]
Shape = tuple[int, ...]


def make_regressor(student: Shape, teacher: Shape, kind: RegressorKind = "full", norm: bool = False) -> nn.Module:
    """Return a network that maps an activation of shape `student` to shape `teacher` (both without the batch axis).

    `full`: one layer without a bottleneck. Vectors and tokens: linear. Maps: a convolution that also changes the
    resolution: 3 x 3 with stride 2 where the student has twice the side, transposed 4 x 4 with stride 2 where it has
    half of it, k = 1 + difference where it is larger by less, else a 1 x 1 convolution and bilinear resizing. Maps to
    vectors: mean over the pixels, then linear.

    `thin`: the ones of the cross-modal benchmark of MST-Distill (arXiv 2507.07015). Vectors: one filter of three taps
    along the features. Maps: a 3 x 3 convolution, strided or transposed where the resolution differs. Maps to vectors:
    a convolution to 16 channels, flattened, then linear.

    Args:
        student: `[D]`, `[N, D]` or `[C, H, W]`.
        teacher: the same, or `[D]` for maps of the student.
        kind: which networks.
        norm: batch normalisation behind a `full` convolution.

    Raises:
        ConfigError: no regressor leads from one shape to the other.
    """
    if len(student) == 1 and len(teacher) == 1:
        return nn.Linear(student[0], teacher[0]) if kind == "full" else ThreeTapFilter(student[0], teacher[0])
    if len(student) == 2 and len(teacher) == 2 and student[0] == teacher[0]:
        return nn.Linear(student[1], teacher[1])
    if len(student) == 3 and len(teacher) == 1:
        if kind == "thin":
            flat = nn.Linear(16 * prod(student[1:]), teacher[0])
            return nn.Sequential(nn.Conv2d(student[0], 16, 3, padding=1), nn.Flatten(), flat)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(student[0], teacher[0]))
    if len(student) == 3 and len(teacher) == 3:
        conv = _thin_conv(student, teacher) if kind == "thin" else _full_conv(student, teacher)
        return nn.Sequential(conv, nn.BatchNorm2d(teacher[0])) if norm and kind == "full" else conv
    raise ConfigError(
        f"no regressor maps student activations {list(student)} to teacher activations {list(teacher)}; tap vectors "
        "[D] of both, maps [C, H, W] of both, tokens [N, D] with the same N, or maps of the student and vectors of the "
        "teacher"
    )


class ThreeTapFilter(nn.Module):
    """A convolution with one channel and three taps along the features, resized to the wanted length.

    Args:
        width: features of the student.
        target: features of the teacher.
    """

    def __init__(self, width: int, target: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, stride=max(width // target, 1), padding=1)
        self.target = target

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map `[B, D]` to `[B, target]`."""
        return F.interpolate(self.conv(x_BD.unsqueeze(1)), size=self.target, mode="nearest").squeeze(1)


class ResizedConv(nn.Module):
    """A convolution whose result is resized to a fixed number of pixels.

    Args:
        conv: the convolution.
        size: height and width of the result.
    """

    def __init__(self, conv: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.size = conv, size

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map maps to `[B, C', *size]`."""
        maps: Tensor = self.conv(x_BCHW)
        if tuple(maps.shape[2:]) == self.size:
            return maps
        return F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False)


def _full_conv(student: Shape, teacher: Shape) -> nn.Module:
    (width, height, side), (target, goal_height, goal_side) = student, teacher
    sides, goals = (height, side), (goal_height, goal_side)
    if sides == (2 * goal_height, 2 * goal_side):
        return nn.Conv2d(width, target, 3, stride=2, padding=1)
    if goals == (2 * height, 2 * side):
        return nn.ConvTranspose2d(width, target, 4, stride=2, padding=1)
    if height >= goal_height and side >= goal_side and max(height - goal_height, side - goal_side) < 8:
        return nn.Conv2d(width, target, (1 + height - goal_height, 1 + side - goal_side))
    return ResizedConv(nn.Conv2d(width, target, 1), goals)


def _thin_conv(student: Shape, teacher: Shape) -> nn.Module:
    size = (teacher[1], teacher[2])
    if student[1] == teacher[1]:
        return ResizedConv(nn.Conv2d(student[0], teacher[0], 3, padding=1), size)
    if student[1] > teacher[1]:
        return ResizedConv(nn.Conv2d(student[0], teacher[0], 3, stride=2, padding=1), size)
    up = nn.ConvTranspose2d(student[0], teacher[0], 3, stride=2, padding=1, output_padding=1)
    return ResizedConv(up, size)
