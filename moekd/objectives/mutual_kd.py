"""Mutual distillation of everyone by everyone (stage 1 of MST-Distill, arXiv 2507.07015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING

from ..signals import full_precision
from .base import OBJECTIVES, Loss, Objective
from .kd import kd_kl

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool


@OBJECTIVES.register("mutual_kd")
class MutualKD(Objective):
    """Sum of `kd_kl(learner, target)` over all ordered pairs of student and teachers.

    MST-Distill stops no gradient: every term sends gradients into its learner and into its target. Deep mutual learning
    (Zhang et al., arXiv 1706.00384) detaches the target.

    Args:
        temperature: softmax temperature T > 0.
        detach_target: stop the gradient into the target of each pair.
        teachers: names of the teachers that take part, default all.
    """

    def __init__(
        self, temperature: float = 4.0, detach_target: bool = False, teachers: list[str] | None = None
    ) -> None:
        super().__init__()
        self.teachers = teachers
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.temperature, self.detach_target = temperature, detach_target

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"mutual_kd": [B]}`, summed over the pairs."""
        names = ["student", *self.variants(step.pool)]
        logits = {name: step.signals(name).require_logits("mutual_kd") for name in names}
        total = full_precision(logits["student"].new_zeros(logits["student"].shape[0]))
        for learner, target in permutations(names, 2):
            goal = logits[target].detach() if self.detach_target else logits[target]
            total = total + kd_kl(logits[learner], goal, self.temperature)
        return {"mutual_kd": total}

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the plain teachers that take part."""
        return pool.names if self.teachers is None else self.teachers
