"""Relational distillation (Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068).

Shapes: B batch, D features, b vertices of a block.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import TapPair, TeacherTap, no_autocast

if TYPE_CHECKING:
    from ..model import Batch


def pair_distances(features_BD: Tensor) -> Tensor:
    """Euclidean distance of every two rows, divided by the mean of those above 0, `[B, B]`; 0 for a single row.

    Equation 4 of the paper; the square is at least 1e-12, so that equal rows have gradients of 0.
    """
    norms_B = features_BD.square().sum(dim=1)
    squares_BB = norms_B[:, None] + norms_B[None, :] - 2 * features_BD @ features_BD.T
    others = ~torch.eye(features_BD.shape[0], dtype=torch.bool, device=features_BD.device)
    distances_BB = squares_BB.clamp_min(1e-12).sqrt() * others
    return distances_BB / (distances_BB.sum() / others.sum().clamp_min(1)).clamp_min(1e-12)


def rkd_distance(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Distance-wise loss (equation 5): smooth L1 distance of the relative distances, mean over the other end, `[B]`."""
    with no_autocast(student_BD):
        return F.smooth_l1_loss(pair_distances(student_BD), pair_distances(teacher_BE), reduction="none").mean(dim=1)


def vertex_angles(features_BD: Tensor, vertices_bD: Tensor) -> Tensor:
    """Cosine of the angle that every two rows make at each vertex (equation 6), `[b, B, B]`."""
    edges_bBD = F.normalize(features_BD[None] - vertices_bD[:, None], dim=2)
    return edges_bBD @ edges_bBD.transpose(1, 2)


def rkd_angle(student_BD: Tensor, teacher_BE: Tensor, block: int = 64) -> Tensor:
    """Angle-wise loss (equation 7): smooth L1 distance of the cosines, mean over all pairs of ends, `[B]`.

    There are B^3 angles. They are computed for `block` vertices at a time and once more in the backward pass, so that
    memory is of order block B (B + D).

    Shape:
        student_BD: `[B, D]`; teacher_BE: `[B, E]`; result: `[B]`, one value a vertex.
    """

    def part(mine_BD: Tensor, at_bD: Tensor, other_BE: Tensor, at_bE: Tensor) -> Tensor:
        angles = vertex_angles(mine_BD, at_bD), vertex_angles(other_BE, at_bE)
        return F.smooth_l1_loss(*angles, reduction="none").mean(dim=(1, 2))

    with no_autocast(student_BD):
        losses = []
        for at_bD, at_bE in zip(student_BD.split(block), teacher_BE.split(block), strict=True):
            if student_BD.shape[0] > block and torch.is_grad_enabled():
                loss_b: Tensor = checkpoint(part, student_BD, at_bD, teacher_BE, at_bE, use_reentrant=False)
            else:
                loss_b = part(student_BD, at_bD, teacher_BE, at_bE)
            losses.append(loss_b)
        return torch.cat(losses)


@OBJECTIVES.register("rkd")
class RKD(PairwiseObjective):
    """Relational distillation: distances between instances and angles among three of them, at one tap of each model.

        L = distance_weight L_D + angle_weight L_A

    The two taps may have different widths; maps and tokens are flattened. It is invariant to rotations and to the scale
    of the features. Relations are those within the batch of a process.

    Args:
        student_tap: tap of the student.
        teacher_tap: tap of the teacher, or one a teacher by name.
        teacher: the one teacher or variant; without it the mean over all.
        distance_weight: weight of the distances; 25 in the paper's metric and classification experiments, 1 in
            MST-Distill's benchmark.
        angle_weight: weight of the angles; 50 and 2.
        embed_dim: the relations are those of a linear embedding with this many features, normalised to length 1; the
            student's is learned, the teacher's is random and fixed (MST-Distill's benchmark, with 128). None: of the
            features.
        block: vertices whose angles are computed at a time.
        shapes: sizes of the taps, read with `embed_dim`.
    """

    name = "rkd"
    reads_features, reads_logits, logits_only, compares_rows = True, False, False, True

    def __init__(
        self,
        student_tap: str,
        teacher_tap: TeacherTap,
        teacher: str | None = None,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        embed_dim: int | None = None,
        block: int = 64,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        if block < 1:
            raise ValueError(f"block must be at least 1, found {block}")
        if embed_dim is not None and embed_dim < 1:
            raise ValueError(f"embed_dim must be at least 1 or None, found {embed_dim}")
        self.teacher, self.block = teacher, block
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.taps = TapPair("rkd", student_tap, teacher_tap, teacher, shapes)
        self.embed: nn.Linear | None = None
        if embed_dim is not None:
            self.embed = nn.Linear(prod(self.taps.student_shape()), embed_dim)
            for key, shape in self.taps.teachers().items():
                linear = nn.Linear(prod(shape), embed_dim)
                self.register_buffer(f"weight:{key}", linear.weight.detach().clone())
                self.register_buffer(f"bias:{key}", linear.bias.detach().clone())

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the weighted sum of both losses, `[B]`."""
        mine, other = (feature.flatten(1) for feature in self.taps.features(name, student, teacher))
        if self.embed is not None:
            key = self.taps.key(name)
            with no_autocast(mine):
                mine = F.normalize(self.embed(mine), dim=1)
                other = F.normalize(
                    F.linear(other, self.get_buffer(f"weight:{key}"), self.get_buffer(f"bias:{key}")), dim=1
                )
        loss = self.distance_weight * rkd_distance(mine, other)
        return loss + self.angle_weight * rkd_angle(mine, other, self.block) if self.angle_weight else loss
