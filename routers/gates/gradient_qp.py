"""Weights on which the teachers' gradients agree.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Le
from torch import Tensor

from ...distributed import batch_mean
from ...errors import ConfigError
from ..measures import student_logits, teacher_logits
from ..simplex import min_norm_weights
from .base import GATES, Gate
from .weights import log_weights

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("gradient_qp")
class GradientQPGate(Gate):
    """The mixture of the teachers' gradients with the smallest norm, so that no teacher is served at the cost of the
    others (Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", NeurIPS 2020).

        g_t = mean_b dKD_bt / ds_b = T mean_b (softmax(s_b / T) - softmax(z_bt / T))
        w   = argmin_w 1/2 ||sum_t w_t g_t||^2   with   sum_t w_t = 1,  0 <= w_t <= max(cap, 1 / number of teachers)

    One vector of weights for the batch (of all processes), the same for every row, without gradient. cap = 1 is the
    multiple-gradient descent of Desideri (2012); cap <= 1 / number of teachers is uniform. For dense logits g is the
    mean over the pixels too.

    Use it with the selection `dense` and combine `loss`.

    Args:
        cap: largest weight; 0.6 in the released code.
        temperature: softmax temperature T > 0 of the distillation loss; take that of the objective.
        unit_gradients: scale every g_t to length 1 for the choice of w, divide w_t by the old length and normalise,
            so that teachers with large gradients do not decide alone.
    """

    needs_teachers = True
    gives_weights = True

    def __init__(
        self,
        cap: Annotated[float, Gt(0), Le(1)] = 0.6,
        temperature: Annotated[float, Gt(0)] = 4.0,
        unit_gradients: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < cap <= 1 or temperature <= 0:
            raise ConfigError(f"router.gate: 0 < cap <= 1 and temperature > 0, found {cap} and {temperature}")
        self.cap, self.temperature, self.unit_gradients = cap, temperature, unit_gradients

    def forward(self, step: Step) -> Tensor:
        """Return the logarithms of the weights, `[B, T]`, rows are equal."""
        student = student_logits(step, "the gate 'gradient_qp'")
        gradients_TC = mean_gradients(student, teacher_logits(step), self.temperature)
        weights_T = gradient_weights(gradients_TC, self.cap, self.unit_gradients)
        return log_weights(weights_T.expand(student.shape[0], -1))


def mean_gradients(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """Return the gradient of the mean distillation loss to each teacher by the student's logits, `[T, C]`.

    Shape:
        student: `[B, C]` or `[B, C, H, W]`; teachers: `[B, T, C]` or `[B, T, C, H, W]`.
    """
    probs = (student / temperature).softmax(dim=1).unsqueeze(1)
    difference = temperature * (probs - (teachers / temperature).softmax(dim=2))
    rows_BTC = difference.flatten(3).mean(dim=3) if difference.dim() > 3 else difference
    return batch_mean(rows_BTC)


def gradient_weights(gradients_TC: Tensor, cap: float, unit_gradients: bool = False) -> Tensor:
    """Return the weights `[T]` for given gradients."""
    if not unit_gradients:
        return min_norm_weights(gradients_TC @ gradients_TC.T, cap)
    lengths_T = gradients_TC.norm(dim=1).clamp_min(1e-12)
    units_TC = gradients_TC / lengths_T[:, None]
    weights_T = min_norm_weights(units_TC @ units_TC.T, cap) / lengths_T
    return weights_T / weights_T.sum()
