"""Scores by how far the student is from each teacher.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Gt
from torch import Tensor

from ...errors import ConfigError, ModelError
from ..measures import distance_to_student, student_logits, teacher_logits
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("mismatch")
class MismatchGate(Gate):
    """How far the student is from every teacher at a row is the score.

        logits: KD_bt = T^2 KL(z_bt / T || s_b / T)
        losses: the loss of the routed objective to teacher t

    It has no meaning of its own; a selection gives it one. With `drop` the teacher that the student matches worst is
    always kept and the others drop out by chance (UNIC, arXiv 2408.05088); with `top_k` only the worst-matched ones
    teach. Scores are detached.

    `losses` works for any objective, such as one on embeddings, and for models without a classifier. In a stage with
    several routed objectives the first one decides for all.

    Args:
        temperature: softmax temperature T > 0 of the loss on `logits`; take that of the objective.
        on: `logits` or `losses`.
    """

    needs_teachers = True
    example: ClassVar[Mapping[str, Any]] = {
        "selection": {"kind": "top_k", "k": 1},
        "combine": "select",
        "signal": "none",
    }

    def __init__(self, temperature: Annotated[float, Gt(0)] = 4.0, on: Literal["logits", "losses"] = "logits") -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"router.gate.temperature: must be positive, found {temperature}")
        self.temperature, self.reads_losses = temperature, on == "losses"

    def forward(self, step: Step) -> Tensor:
        """Return the losses, `[B, T]`.

        Raises:
            ModelError: nobody has computed a routed loss yet.
        """
        if self.reads_losses:
            if step.expert_losses is None:
                raise ModelError(
                    "the gate 'mismatch' on 'losses' reads the losses of a routed objective, but none asked for the "
                    "routing: put an objective of kind 'routed' first, or use on: logits"
                )
            return step.expert_losses
        student = student_logits(step, "the gate 'mismatch'")
        return distance_to_student(student, teacher_logits(step), self.temperature)
