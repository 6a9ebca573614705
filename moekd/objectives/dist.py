"""Distillation of relations instead of values (Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS
2022, arXiv 2205.10536).

Shapes: B batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import logits_of

if TYPE_CHECKING:
    from ..model import Batch


def pearson_distance(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """One minus the Pearson correlation along an axis, in [0, 2]; 0 where one of the two is constant.

    Shape:
        a, b: the same; the result lacks the axis `dim`.
    """
    a, b = a - a.mean(dim=dim, keepdim=True), b - b.mean(dim=dim, keepdim=True)
    squares = a.square().sum(dim=dim) * b.square().sum(dim=dim)
    varies = squares > torch.finfo(squares.dtype).tiny
    norms = squares.where(varies, torch.ones_like(squares)).sqrt()
    distance = 1 - (a * b).sum(dim=dim) / norms
    return distance.where(varies, torch.zeros_like(distance))


def dist_loss(
    student_BC: Tensor, teacher_BC: Tensor, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """`T^2 (inter d(rows) + intra d(columns))` of the softmax matrices, d the Pearson distance, `[B]`.

    The first part is each instance's own (relations between classes, equation 8 of the paper); the second is the mean
    over the classes (relations between instances, equation 9), the same for every instance.
    """
    student, teacher = ((logits / temperature).softmax(dim=1) for logits in (student_BC, teacher_BC))
    rows_B, columns_C = pearson_distance(student, teacher, 1), pearson_distance(student, teacher, 0)
    return temperature**2 * (inter * rows_B + intra * columns_C.mean())


@OBJECTIVES.register("dist")
class DIST(PairwiseObjective):
    """Pearson correlation of the probabilities, over the classes of an instance and over the instances for a class.

    It does not ask for the teacher's values, only for their order and spacing; made for teachers that are much stronger
    than the student. Correlations over instances are those within the batch of a process.

    Args:
        teacher: the one teacher or variant; without it the mean over all.
        inter: weight of the correlation between classes (beta).
        intra: weight of the correlation between instances (gamma).
        temperature: softmax temperature T > 0; 4 is usual for small data sets.
    """

    name = "dist"
    compares_rows = True

    def __init__(
        self, teacher: str | None = None, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.teacher, self.inter, self.intra, self.temperature = teacher, inter, intra, temperature

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `dist_loss`, `[B]`."""
        return dist_loss(*logits_of(student, teacher, "dist", dense=False), self.inter, self.intra, self.temperature)
