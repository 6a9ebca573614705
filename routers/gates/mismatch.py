"""Scores by how far the student is from each teacher.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Gt
from torch import Tensor

from ...errors import ConfigError
from ..measures import distance_to_student, student_logits, teacher_logits
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("mismatch")
class MismatchGate(Gate):
    """The distillation loss of every row to every teacher is the score: `KD_bt = T^2 KL(z_bt / T || s_b / T)`.

    It has no meaning of its own; a selection gives it one. With `drop` the teacher that the student matches worst is
    always kept and the others drop out by chance (UNIC, arXiv 2408.05088); with `top_k` only the worst-matched ones
    teach. Scores are detached.

    Args:
        temperature: softmax temperature T > 0 of the loss; take that of the objective.
    """

    needs_teachers = True
    example: ClassVar[Mapping[str, Any]] = {
        "selection": {"kind": "top_k", "k": 1},
        "combine": "select",
        "signal": "none",
    }

    def __init__(self, temperature: Annotated[float, Gt(0)] = 4.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"router.gate.temperature: must be positive, found {temperature}")
        self.temperature = temperature

    def forward(self, step: Step) -> Tensor:
        """Return the losses, `[B, T]`."""
        student = student_logits(step, "the gate 'mismatch'")
        return distance_to_student(student, teacher_logits(step), self.temperature)
