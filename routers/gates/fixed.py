"""Gates without parameters that look at nothing: the baselines every learned gate has to beat.

Shapes: R rows (instances, tokens or pixels), T teacher variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...registry import Injected
from ..positions import Granularity, Rows, count
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("uniform")
class UniformGate(Gate):
    """The same score for every teacher; with the selection `dense` this is the plain mean over the teachers.

    Args:
        num_teachers: number T of teacher variants.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
    """

    example: ClassVar[Mapping[str, Any]] = {"signal": "none"}

    def __init__(
        self, num_teachers: Injected[int], granularity: Granularity = "instance", mask_field: str | None = None
    ) -> None:
        super().__init__()
        self.num_teachers, self.rows = num_teachers, Rows(granularity, mask_field)

    def forward(self, step: Step) -> Tensor:
        """Return zeros, `[R, T]`."""
        logits = step.student.require_logits("the uniform gate")
        rows = logits.shape[0] * count(self.rows.positions(step, "the uniform gate"))
        return logits.new_zeros(rows, self.num_teachers)
