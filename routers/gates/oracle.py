"""The teacher that knows the answer.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from ...errors import ConfigError
from ..measures import teacher_cross_entropy
from ..positions import Granularity, Rows
from .base import GATES, Gate
from .weights import log_weights

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("oracle")
class OracleGate(Gate):
    """For every row the teacher with the smallest cross-entropy against its label: what perfect routing would choose.

        hard (tau = 0):   w_bt = 1 if t = argmin_u CE_bu else 0      (ties go to the lowest index)
        soft (tau > 0):   w_b = softmax(-CE_b / tau)

    It reads labels, so it is a reference and not a method: nobody can route like this at a row without a label. Such
    rows get uniform weights or, with `hidden_labels`, the weights that their hidden labels give. Soft weights tend to
    hard ones for small tau and to uniform ones for large tau.

    Args:
        tau: temperature in nats; 0 is hard.
        hidden_labels: read the labels that few-label data hide from everybody else: the upper reference.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
    """

    needs_teachers = True
    gives_weights = True
    example: ClassVar = {"gate": {"hidden_labels": True}}

    def __init__(
        self,
        tau: Annotated[float, Ge(0)] = 0.0,
        hidden_labels: bool = False,
        granularity: Granularity = "instance",
        mask_field: str | None = None,
    ) -> None:
        super().__init__()
        if tau < 0:
            raise ConfigError(f"router.gate.tau: a temperature is not negative, found {tau}")
        self.tau, self.hidden_labels, self.rows = tau, hidden_labels, Rows(granularity, mask_field)

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[B, T]`."""
        losses_BT, known_B = teacher_cross_entropy(step, "the gate 'oracle'", self.rows, self.hidden_labels)
        if self.tau > 0:
            return (-losses_BT / self.tau).where(known_B[:, None], 0.0)
        best = F.one_hot(losses_BT.argmin(dim=1), losses_BT.shape[1])
        return log_weights(best.to(losses_BT.dtype), known_B)
