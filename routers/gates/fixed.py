"""Gates without parameters that look at nothing: the baselines every learned gate has to beat.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...registry import Injected
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("uniform")
class UniformGate(Gate):
    """The same score for every teacher; with the selection `dense` this is the plain mean over the teachers.

    Args:
        num_teachers: number T of teacher variants.
    """

    example: ClassVar[Mapping[str, Any]] = {"signal": "none"}

    def __init__(self, num_teachers: Injected[int]) -> None:
        super().__init__()
        self.num_teachers = num_teachers

    def forward(self, step: Step) -> Tensor:
        """Return zeros, `[B, T]`."""
        logits = step.student.require_logits("the uniform gate")
        return logits.new_zeros(logits.shape[0], self.num_teachers)
