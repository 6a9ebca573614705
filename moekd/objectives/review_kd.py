"""Distillation by knowledge review (Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv
2104.09044).

Shapes: B batch, C channels, H x W pixels, M width of the fusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals, full_precision
from .auxiliary_heads import RowSafeBatchNorm2d
from .base import OBJECTIVES, PairwiseObjective
from .inputs import TapPair

if TYPE_CHECKING:
    from ..model import Batch


def hierarchical_context_loss(student: Tensor, teacher: Tensor, levels: Sequence[int] = (4, 2, 1)) -> Tensor:
    """Mean squared difference of two maps at full resolution and of their averages on coarser grids, `[B]`.

    The first has weight 1, the grid of `levels[i]` pixels a side 2^-(i + 1); levels not below the maps' height are left
    out; divided by the sum of the weights (HCL of the paper).

    Shape:
        student, teacher: `[B, C, H, W]`.
    """
    total = (student - teacher).square().flatten(1).mean(dim=1)
    weight = whole = 1.0
    for level in levels:
        if level >= student.shape[2]:
            continue
        weight /= 2
        pooled = F.adaptive_avg_pool2d(student, level) - F.adaptive_avg_pool2d(teacher, level)
        total = total + weight * pooled.square().flatten(1).mean(dim=1)
        whole += weight
    return total / whole


class AttentionFusion(nn.Module):
    """Merges a student's map with what came from the deeper stages, weighted pixel by pixel (ABF of the paper).

    Args:
        width: channels of the student's map.
        middle: channels M of the fusion.
        target: channels of the teacher's map.
        fuses: there is a deeper stage.
    """

    def __init__(self, width: int, middle: int, target: int, fuses: bool) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(width, middle, 1, bias=False), RowSafeBatchNorm2d(middle))
        self.exit = nn.Sequential(nn.Conv2d(middle, target, 3, padding=1, bias=False), RowSafeBatchNorm2d(target))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None
        for layer in (*self.entry, *self.exit):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, x_BCHW: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the map for the teacher's stage, resized to its `size`, and the fused map `[B, M, H, W]`."""
        x_BMHW: Tensor = self.entry(x_BCHW)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, size=x_BMHW.shape[2:], mode="nearest")
            weights: Tensor = self.attention(torch.cat([x_BMHW, deeper], dim=1)).sigmoid()
            x_BMHW = x_BMHW * weights[:, :1] + deeper * weights[:, 1:]
        out: Tensor = self.exit(x_BMHW)
        out = out if tuple(out.shape[2:]) == size else F.interpolate(out, size=size, mode="nearest")
        return out, x_BMHW


class ReviewPath(nn.Module):
    """The fusions of all stages, for one teacher.

    Args:
        widths: channels of the student's maps, shallow to deep.
        targets: channels of the teacher's maps.
        middle: channels of the fusions.
    """

    def __init__(self, widths: Sequence[int], targets: Sequence[int], middle: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.fusions = nn.ModuleList(
            AttentionFusion(width, middle, target, fuses=i < last)
            for i, (width, target) in enumerate(zip(widths, targets, strict=True))
        )

    def forward(self, student: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return a map for every stage of the teacher, shallow to deep; deep stages are reviewed first."""
        found: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, x, size in zip(reversed(list(self.fusions)), reversed(student), reversed(sizes), strict=True):
            out, deeper = fusion(x, deeper, size)
            found.insert(0, out)
        return found


@OBJECTIVES.register("review_kd")
class ReviewKD(PairwiseObjective):
    """Every stage of the teacher is matched by the student's stages up to the deepest one, fused by attention.

    For convolutional networks. The published weight is 0.6 to 8 by the pair of networks, raised over the first epochs.

    Args:
        student_taps: taps of the student that give maps, shallow to deep.
        teacher_taps: as many of the teacher, or a list for each teacher by name.
        teacher: the one teacher or variant; without it the mean over all.
        middle: channels M of the fusions; without it the width of the student's deepest map, at most 512.
        shapes: sizes of the taps.
    """

    name = "review_kd"
    reads_features, reads_logits, logits_only, compares_rows = True, False, False, True

    def __init__(
        self,
        student_taps: list[str],
        teacher_taps: list[str] | dict[str, list[str]],
        teacher: str | None = None,
        middle: int | None = None,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        lists = list(teacher_taps.values()) if isinstance(teacher_taps, dict) else [teacher_taps]
        if not student_taps or any(len(taps) != len(student_taps) for taps in lists):
            raise ConfigError(
                f"review_kd pairs the taps of student and teacher, shallow to deep: give as many of each; found "
                f"{student_taps} and {teacher_taps}"
            )
        self.teacher = teacher
        self.stages = [
            TapPair(
                "review_kd",
                tap,
                {name: taps[i] for name, taps in teacher_taps.items()}
                if isinstance(teacher_taps, dict)
                else teacher_taps[i],
                teacher,
                shapes,
            )
            for i, tap in enumerate(student_taps)
        ]
        widths = [_channels(stage.student_shape(), stage.student_tap) for stage in self.stages]
        by_teacher: dict[str, list[int]] = {}
        for stage in self.stages:
            for key, shape in stage.teachers().items():
                plain, _, tap = key.partition(":")
                by_teacher.setdefault(plain, []).append(_channels(shape, tap))
        self.paths = nn.ModuleDict(
            {
                f"path:{plain}": ReviewPath(widths, targets, middle or min(512, widths[-1]))
                for plain, targets in by_teacher.items()
                if len(targets) == len(widths)
            }
        )

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `hierarchical_context_loss`, summed over the stages, `[B]`."""
        key = f"path:{name.partition('/')[0]}"
        if key not in self.paths:
            raise ModelError(f"review_kd.teacher_taps names no taps for '{name}', or it does not have them all")
        mine, other = zip(*(stage.features(name, student, teacher) for stage in self.stages), strict=True)
        sizes = [(maps.shape[2], maps.shape[3]) for maps in other]
        matched = self.paths[key](mine, sizes)
        losses = [hierarchical_context_loss(full_precision(a), b) for a, b in zip(matched, other, strict=True)]
        return torch.stack(losses).sum(dim=0)


def _channels(shape: tuple[int, ...], tap: str) -> int:
    if len(shape) != 3:
        raise ConfigError(f"review_kd takes maps [C, H, W]; tap '{tap}' gives {list(shape)}")
    return shape[0]
