"""Teachers that learn to speak the student's language (stage 2 of MST-Distill, arXiv 2507.07015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .base import OBJECTIVES, Loss, Objective
from .kd import kd_kl

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool


@OBJECTIVES.register("kd_to_student")
class KDToStudent(Objective):
    """`kd_kl(variant, student)` for every masked variant: the variant learns, the student is the target and gets no
    gradient.

    Args:
        temperature: softmax temperature T > 0.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.temperature = temperature

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return one loss a variant: `{"kd_to_student/multimodal/fusion": [B]}`."""
        target = step.student.require_logits("kd_to_student").detach()
        return {
            f"kd_to_student/{name}": kd_kl(signals.require_logits("kd_to_student"), target, self.temperature)
            for name, signals in step.teachers.items()
        }

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return all variants."""
        return pool.experts
