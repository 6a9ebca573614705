"""Matching the teachers' spatial tokens, whatever their number and width.

Shapes: B batch, N tokens, C channels of the student, D channels of the teacher, H x W places of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals, full_precision
from ..teachers.normalize import Normalisation, TargetNorm
from .base import OBJECTIVES, PairwiseObjective
from .embedding_kd import DISTANCES, embedding_distance, folded
from .inputs import TapPair, TeacherTap
from .ladder import mlp

if TYPE_CHECKING:
    from ..model import Batch

#: Tokens in front of the grid (class token, registers): a number, by teacher, or None: what is left of a square.
Prefix = int | dict[str, int] | None


class Grid(NamedTuple):
    """How an activation holds a grid of places.

    Attributes:
        height, width: places.
        channels: numbers a place.
        prefix: tokens before the first place; None for maps `[C, H, W]`.
    """

    height: int
    width: int
    channels: int
    prefix: int | None

    def tokens(self, activation: Tensor) -> Tensor:
        """Return the places row by row, `[B, H W, channels]`."""
        if self.prefix is None:
            return activation.flatten(2).transpose(1, 2)
        return activation[:, self.prefix :]


def grid_of(shape: tuple[int, ...], prefix: int | None, where: str) -> Grid:
    """Return the grid of an activation of this shape (without the batch axis): tokens `[N, C]` or maps `[C, H, W]`.

    Args:
        shape: of the activation.
        prefix: leading tokens that are no places; None: what is left of the largest square.
        where: the config key, for messages.

    Raises:
        ConfigError: it is neither, or the tokens behind the prefix are no square.
    """
    if len(shape) == 3:
        return Grid(shape[1], shape[2], shape[0], None)
    if len(shape) != 2:
        raise ConfigError(f"{where}: gives {list(shape)}; expected tokens [N, C] or maps [C, H, W]")
    leading = shape[0] - math.isqrt(shape[0]) ** 2 if prefix is None else prefix
    side = math.isqrt(max(shape[0] - leading, 0))
    if side < 1 or side**2 != shape[0] - leading:
        raise ConfigError(
            f"{where}: {shape[0]} tokens without the {leading} in front are no square grid; set the number of leading "
            "tokens (class token, registers) as student_prefix or teacher_prefix, or tap a map [C, H, W]"
        )
    return Grid(side, side, shape[1], leading)


def resized(tokens_BND: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return tokens of a grid on another grid, interpolated bilinearly, `[B, N', D]`."""
    if grid == size:
        return tokens_BND
    maps = tokens_BND.transpose(1, 2).unflatten(2, grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


@OBJECTIVES.register("token_kd")
class TokenKD(PairwiseObjective):
    """Each place of the student's picture says what the teacher says there: the spatial part of feature agglomeration.

        L_b = mean_n sum_d weight_d distance_d(head(s)_bn, y_bn)

    Places behind a head for each teacher, on a common grid; a distance is that of `embedding_kd`, a mean over the
    channels. The defaults are those of AM-RADIO (Ranzinger et al., CVPR 2024, arXiv 2312.06709) and Theia (arXiv
    2407.20179); UNIC (arXiv 2408.05088) has `{cosine: 0.5, smooth_l1: 0.5}` and `normalise: ema`. The summary tokens
    of these methods are `embedding_kd`.

    Args:
        student_tap: tap of the student that gives tokens `[N, C]` or maps `[C, H, W]`.
        teacher_tap: tap of the teachers, or one a teacher by name.
        teacher: the one teacher or variant; without it the mean over all that have the tap.
        distances: weight of each distance, of `cosine`, `smooth_l1` and `mse`.
        projection: `auto` (a linear head where widths differ, and everywhere if targets are normalised), `none`,
            `linear` or `mlp` on every place.
        hidden_dim: width of the hidden layer of `mlp`; None: the teacher's.
        grid: the common grid: the `smaller` one of the two, the `student`'s or the `teacher`'s.
        student_prefix, teacher_prefix: leading tokens that are no places, such as class token and registers; None: what
            is left of the largest square.
        normalise: normalisation of the targets, see `TargetNorm`; one for each teacher.
        freeze_after: batches after which the statistics of the targets stay.
        refresh_every: batches between two rotations of `phi_s`.
        shapes: sizes of the taps.
    """

    name = "token_kd"
    reads_features, logits_only, reads_logits = True, False, False

    def __init__(
        self,
        student_tap: str,
        teacher_tap: TeacherTap,
        teacher: str | None = None,
        distances: dict[str, float] | None = None,
        projection: Literal["auto", "none", "linear", "mlp"] = "auto",
        hidden_dim: int | None = None,
        grid: Literal["smaller", "student", "teacher"] = "smaller",
        student_prefix: int | None = None,
        teacher_prefix: int | dict[str, int] | None = None,
        normalise: Normalisation = "none",
        freeze_after: int = 3000,
        refresh_every: int = 100,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.teacher, self.grid = teacher, grid
        self.distances = {"cosine": 0.9, "smooth_l1": 0.1} if distances is None else dict(distances)
        if not self.distances or set(self.distances) - set(DISTANCES):
            raise ConfigError(f"token_kd.distances takes {', '.join(DISTANCES)}; found {self.distances}")
        self.taps = TapPair("token_kd", student_tap, teacher_tap, teacher, shapes)
        self.mine = grid_of(self.taps.student_shape(), student_prefix, "token_kd.student_tap")
        self.theirs = {
            key: grid_of(shape, _prefix_of(teacher_prefix, key.partition(":")[0]), f"token_kd.teacher_tap of {key}")
            for key, shape in self.taps.teachers().items()
        }
        # Statistics are summed over all processes, so every process has to see every teacher in every batch.
        self.compares_rows = normalise != "none"
        self.heads, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for key, theirs in self.theirs.items():
            if normalise != "none":
                self.norms[key] = TargetNorm(normalise, theirs.channels, freeze_after, refresh_every)
            head = _head(projection, self.mine.channels, theirs.channels, hidden_dim, normalise != "none")
            if head is not None:
                self.heads[key] = head

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the loss to the tokens of one teacher, the mean over the places, `[B]`."""
        student_tokens, target = self.tokens(name, student, teacher)
        rows, places = target.shape[:2]
        flat = student_tokens.flatten(0, 1), target.flatten(0, 1)
        losses = [
            weight * embedding_distance(*flat, distance)  # type: ignore[arg-type]
            for distance, weight in self.distances.items()
        ]
        return torch.stack(losses).sum(dim=0).view(rows, places).mean(dim=1)

    def tokens(self, name: str, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """Return the student's tokens behind the head and the teacher's targets on the common grid, `[B, N, D]` each.

        Raises:
            ModelError: the teacher has no tokens that this objective knows, or another number of them than expected.
        """
        key = self.taps.key(name)
        if key not in self.theirs:
            raise ModelError(f"token_kd knows no tokens of '{name}'; it knows {', '.join(self.theirs)}")
        mine, theirs = self.mine, self.theirs[key]
        own, target = self.taps.features(name, student, teacher)
        own, target = _checked(mine, own, "the student"), _checked(theirs, target, f"teacher '{name}'")
        if key in self.heads:
            head = self.heads[key]
            own = full_precision(head(own.to(next(head.parameters()).dtype)))
        if key in self.norms:
            target = self.norms[key](target.detach(), update=self.training and torch.is_grad_enabled())
        size = self._size(mine, theirs)
        own = resized(own, (mine.height, mine.width), size)
        return own, resized(target, (theirs.height, theirs.width), size)

    def raw_head(self, teacher: str) -> nn.Module:
        """Return the head that gives the teacher's tokens as they were before the normalisation, from `[..., C]`.

        Raises:
            ModelError: there is no head for this teacher.
        """
        key = self.taps.key(teacher)
        if key not in self.heads:
            raise ModelError(f"token_kd has no head for '{teacher}'; heads: {', '.join(self.heads) or 'none'}")
        if key not in self.norms:
            return self.heads[key]
        norm = self.norms[key]
        assert isinstance(norm, TargetNorm)
        return folded(self.heads[key], norm)

    def _size(self, mine: Grid, theirs: Grid) -> tuple[int, int]:
        sizes: Mapping[str, tuple[int, int]] = {
            "student": (mine.height, mine.width),
            "teacher": (theirs.height, theirs.width),
        }
        return min(sizes.values(), key=math.prod) if self.grid == "smaller" else sizes[self.grid]


def _checked(grid: Grid, activation: Tensor, who: str) -> Tensor:
    tokens = grid.tokens(activation)
    if tokens.shape[1:] != (grid.height * grid.width, grid.channels):
        raise ModelError(
            f"token_kd was made for a grid of {grid.height} x {grid.width} places with {grid.channels} channels of "
            f"{who}, found an activation {tuple(activation.shape)}; pictures have to be of one size"
        )
    return tokens


def _head(kind: str, width: int, dim: int, hidden: int | None, always: bool) -> nn.Module | None:
    if kind == "none":
        if width != dim:
            raise ConfigError(
                f"token_kd.projection 'none': tokens have {width} channels in the student and {dim} in the teacher; "
                "use projection 'auto'"
            )
        return None
    if kind == "auto" and width == dim and not always:
        return None
    return mlp(width, hidden or dim, dim) if kind == "mlp" else nn.Linear(width, dim)


def _prefix_of(prefix: Prefix, teacher: str) -> int | None:
    return prefix.get(teacher) if isinstance(prefix, dict) else prefix
