"""Hints: the student's activation, through a regressor, matches the teacher's (Romero et al., "FitNets: Hints for Thin
Deep Nets", ICLR 2015, arXiv 1412.6550).

Shapes: B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..errors import ModelError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import TapPair, TeacherTap
from .regressors import RegressorKind, make_regressor

if TYPE_CHECKING:
    from ..model import Batch


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two activations of every instance.

    The paper's equation 3 has half the squared norm; the mean over the elements, as in its later implementations, makes
    the weight independent of the tap's size.

    Shape:
        student, teacher: `[B, ...]`, the same; result: `[B]`.

    Raises:
        ModelError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ModelError(f"fitnets: activations {tuple(student.shape)} and {tuple(teacher.shape)} differ")
    return (student - teacher).square().flatten(1).mean(dim=1)


@OBJECTIVES.register("fitnets")
class FitNets(PairwiseObjective):
    """Hint-based training: `mean (R(f_s) - f_t)^2` at one tap of student and teacher, with a learned regressor R.

    The published schedule has two stages: first this objective alone, in which the layers up to the tap get gradients,
    then `kd` with cross-entropy. Several pairs of taps: the objective several times, with names of their own. Every
    teacher has a regressor of its own.

    Args:
        student_tap: tap of the student (the guided layer).
        teacher_tap: tap of the teacher (the hint layer), or one a teacher by name.
        teacher: the one teacher or variant; without it the mean over all.
        regressor: `full`, one layer without a bottleneck, or `thin`, those of MST-Distill's benchmark.
        norm: batch normalisation behind a convolutional regressor.
        shapes: sizes of the taps.
    """

    name = "fitnets"
    reads_features, reads_logits, logits_only = True, False, False

    def __init__(
        self,
        student_tap: str,
        teacher_tap: TeacherTap,
        teacher: str | None = None,
        regressor: RegressorKind = "full",
        norm: bool = False,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.teacher, self.compares_rows = teacher, norm
        self.taps = TapPair("fitnets", student_tap, teacher_tap, teacher, shapes)
        width = self.taps.student_shape()
        self.regressors = nn.ModuleDict(
            {key: make_regressor(width, target, regressor, norm) for key, target in self.taps.teachers().items()}
        )

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `hint_loss` behind the teacher's regressor, `[B]`."""
        mine, other = self.taps.features(name, student, teacher)
        return hint_loss(self.regressors[self.taps.key(name)](mine).to(other.dtype), other)
