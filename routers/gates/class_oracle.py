"""The teacher that is best at the class.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...distributed import sum_over_processes
from ...errors import ConfigError, DataError, ModelError
from ...model import Batch
from ...registry import Injected
from ...signals import PoolSignals
from ..measures import labels_of
from .base import GATES, Gate
from .weights import log_weights

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("class_oracle")
class ClassOracleGate(Gate):
    """For every row the teacher that is most accurate on held-out data of the row's class.

        w_bt = 1 if t = argmax_u accuracy_u[y_b] else 0      (ties go to the lowest index)

    Like `oracle` it reads the label, but it chooses by class and not by row, so it is less noisy, and no teacher has to
    run before rows are routed. Rows without a label get uniform weights (with `top_k`: the first teacher).

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        accuracies: for every teacher variant, in pool order, its accuracy on every class, measured on data that neither
            teachers nor student learn from. Without it every stage measures them before its first step; checkpoints
            hold the table.
        fit_on: split that they are measured on.
    """

    accuracy: Tensor
    gives_weights = True

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        accuracies: Sequence[Sequence[float]] | None = None,
        fit_on: Literal["train", "val"] = "val",
    ) -> None:
        super().__init__()
        self.register_buffer("accuracy", torch.full((num_teachers, num_classes), torch.nan))
        self.register_load_state_dict_post_hook(_look_again)
        if accuracies is not None:
            if [len(row) for row in accuracies] != [num_classes] * num_teachers:
                raise ConfigError(
                    f"router.gate.accuracies: {num_teachers} rows (teacher variants) of {num_classes} numbers (classes)"
                    f" expected, found rows of {[len(row) for row in accuracies]}"
                )
            self.accuracy.copy_(torch.tensor(accuracies))
        self.fitted = accuracies is not None
        self.fit_on = None if self.fitted else fit_on

    def forward(self, step: Step) -> Tensor:
        """Return the logarithms of the weights, `[B, T]`.

        Raises:
            ModelError: there are no accuracies yet.
        """
        if not self.fitted:
            raise ModelError("the gate 'class_oracle' has no accuracies: give router.gate.accuracies, or call fit()")
        classes_B, known_B = labels_of(step, "the gate 'class_oracle'")
        best_C = self.accuracy.argmax(dim=0)
        weights_BT = F.one_hot(best_C[classes_B], self.accuracy.shape[0]).to(self.accuracy.dtype)
        return log_weights(weights_BT, known_B)

    @torch.no_grad()
    def fit(self, teachers: Callable[[Batch], PoolSignals], batches: Iterable[Batch]) -> None:
        """Measure the accuracies on held-out batches (of this process; the counts of all are added).

        A class without rows takes the teacher's accuracy over all rows.

        Args:
            teachers: the pool: signals of all experts for a batch.
            batches: with labels; rows without one do not count.

        Raises:
            DataError: no row has a label.
        """
        right_TC, rows_C = torch.zeros_like(self.accuracy), torch.zeros_like(self.accuracy[0])
        for batch in batches:
            labels_B = batch["label"].to(right_TC.device)
            known_B = labels_B >= 0
            if "labelled" in batch:
                known_B = known_B & batch["labelled"].to(right_TC.device)
            hits_BT = teachers(batch).logits.argmax(dim=2).to(right_TC.device) == labels_B[:, None]
            counted_BT = hits_BT[known_B].to(right_TC.dtype)
            right_TC.index_add_(1, labels_B[known_B], counted_BT.T)
            rows_C += torch.bincount(labels_B[known_B], minlength=len(rows_C))
        sum_over_processes(right_TC)
        sum_over_processes(rows_C)
        if not rows_C.sum() > 0:
            raise DataError("class_oracle: no held-out row has a label")
        overall_T1 = right_TC.sum(dim=1, keepdim=True) / rows_C.sum()
        self.accuracy.copy_(torch.where(rows_C > 0, right_TC / rows_C.clamp_min(1), overall_T1))
        self.fitted = True


def _look_again(gate: torch.nn.Module, incompatible: Any) -> None:
    assert isinstance(gate, ClassOracleGate)
    gate.fitted = not bool(gate.accuracy.isnan().any())
